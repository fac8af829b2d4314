"""The applications, one module each."""
