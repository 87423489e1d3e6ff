"""Procedural picture sets that stand in for the domains of a study.

They show nothing that a scene of the world shows.
"""
