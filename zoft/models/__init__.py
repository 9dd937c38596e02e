"""Models: found, converted to safetensors once, loaded, and the parameters that learn."""
