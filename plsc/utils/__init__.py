"""Sample readers for training scripts that build their own input pipeline."""
