"""The gap between visual and textual tokens: the distance of their distributions, per layer."""
