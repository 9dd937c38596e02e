"""The recipe: its schema, its defaults, how it is read, and those that are shipped."""
