"""Attention knockout: what blocking attention between two sets of positions does to the answer."""
