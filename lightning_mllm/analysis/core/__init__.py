"""What all experiments share: the base of analyses, their result, windows of layers, sets of tokens."""
