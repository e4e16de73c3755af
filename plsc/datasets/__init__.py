"""Works on whole data sets: what the actions of `plsc data` do."""
