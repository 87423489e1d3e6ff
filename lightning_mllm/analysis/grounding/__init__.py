"""Grounding: how much likelier an answer is with its own picture than with another's."""
