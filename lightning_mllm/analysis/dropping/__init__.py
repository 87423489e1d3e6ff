"""Dropping visual tokens after some layers: accuracy, operations and time."""
