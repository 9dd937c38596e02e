"""Where weights live: blocks of a model, and the files that hold them."""
