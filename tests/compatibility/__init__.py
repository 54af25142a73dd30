"""What hyparflow takes of Keras: one row for each feature, with the check that it is true."""
