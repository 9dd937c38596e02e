"""The campaign's parts, each a program of its own: `python -m gpu.parts.steps --out DIR`."""
