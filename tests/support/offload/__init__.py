"""Streaming: programs of operations, and ways to run them."""
