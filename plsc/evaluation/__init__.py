"""Embedding collections of images, and testing networks on them."""
