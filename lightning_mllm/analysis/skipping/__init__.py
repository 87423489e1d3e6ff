"""Skipping computations for some tokens in some layers: accuracy, operations and time."""
