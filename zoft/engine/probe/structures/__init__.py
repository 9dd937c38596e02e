"""The structures of directions: dense, rank-1."""
