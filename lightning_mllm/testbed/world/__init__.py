"""Scenes, the facts about them, and how they are drawn."""
