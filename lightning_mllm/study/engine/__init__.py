"""Runs the cells of any study, each at most once, and knows nothing of papers."""
