"""Training: the loop, its state, its callbacks, and what it logs, records and uploads."""
