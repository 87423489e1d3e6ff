"""From samples to batches: splits, checks, collation, and loaders that resume."""
