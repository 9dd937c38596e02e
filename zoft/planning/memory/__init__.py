"""How much memory a run takes, from numbers alone."""
