"""What `zoft doctor` prints: of this machine, or of a model."""
