"""Implicit alignment: how similar perceptual and textual tokens are inside the LLM."""
