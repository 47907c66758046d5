"""Training and evaluation speed, measured in fresh processes."""
