"""Reference pages and JSON schema generated from the recipe."""
