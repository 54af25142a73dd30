"""What is handed out (`make dist`), and which versions it works with (`make compat`)."""
