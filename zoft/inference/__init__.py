"""Read a model without changing it: evaluate, generate, chat."""
