"""The training loop, the tests on verification sets, and what they report."""
