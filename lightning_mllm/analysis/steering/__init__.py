"""Steering: vectors that are added to states, read between classes or before and after training."""
