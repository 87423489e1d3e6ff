"""What all experiments share: the base of analyses, results, windows of layers, sets of tokens."""
