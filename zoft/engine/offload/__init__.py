"""Streaming: blocks of a model that come from host memory or disk when they are computed with."""
