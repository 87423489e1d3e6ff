"""Optimisers, learning rates per part, and the schedule."""
