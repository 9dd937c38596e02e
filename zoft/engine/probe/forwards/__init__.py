"""What stands in for a module's own forward while a probe is open, one file for each kind of module."""
