"""What is handed out (`make dist`)."""
