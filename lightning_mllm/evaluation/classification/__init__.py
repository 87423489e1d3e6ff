"""One class per sample: scorers, the answer parser, accuracy and macro-F1."""
