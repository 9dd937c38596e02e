"""From files or Hub sets to token sequences, and the order in which training visits them."""
