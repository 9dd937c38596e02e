"""A server like the Hub, and a client in a process of its own."""
