"""Live lines of a running command."""
