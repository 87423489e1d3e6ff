"""Classifiers on features, independent of the model's training."""
