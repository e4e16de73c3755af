"""Networks that embed: those in training, exported ones, and the export itself."""
