"""What goes to the Hugging Face Hub, under which names, and how it gets there whole."""
