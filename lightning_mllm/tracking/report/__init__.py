"""The page of a run: one HTML file with its curves, tables, settings and pictures."""
