"""The campaign over every causal decoder of transformers: tiny random models, and what is checked."""
