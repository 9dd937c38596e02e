"""The formats of a row, one file each; `table.py` lists them."""
