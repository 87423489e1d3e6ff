"""Scenes, what is true of them, and how they are drawn."""
