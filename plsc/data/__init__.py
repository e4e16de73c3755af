"""Reading, decoding, shuffling and batching of images; NumPy only, nothing here imports paddle."""
