"""Exact sums and normal numbers."""
