"""A model at theta + scale * z, without changing theta."""
