"""The border to TensorFlow's insides: compiling, splitting and calling what stages compute.

Imports comm, formats and model.
"""
