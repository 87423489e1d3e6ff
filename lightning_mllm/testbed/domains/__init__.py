"""Procedural picture sets that stand in for the domains of a study: what they show, no scene of the world does."""
