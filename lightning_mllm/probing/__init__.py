"""Independent probes: what can be read from a model's features, layer by layer and epoch by epoch."""
