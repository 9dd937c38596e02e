"""The command line: verbs by their subject, put together in main.py."""
