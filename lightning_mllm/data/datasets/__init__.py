"""One dataset, one file; and what a published dataset should hold."""
