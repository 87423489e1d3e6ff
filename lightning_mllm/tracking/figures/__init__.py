"""Pictures of results as PNG files. The only importers of matplotlib: figures of their own, no global state."""
