"""Readers kept for training scripts that build their own input pipeline."""
