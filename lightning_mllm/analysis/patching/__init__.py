"""Activation patching: what a run says with some of another run's states."""
