"""Dissecting a model: what blocking attention, or reading its layers, says about how it answers."""
