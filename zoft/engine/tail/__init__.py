"""Exact gradients of what stands behind the body: the head's rows, the last blocks."""
