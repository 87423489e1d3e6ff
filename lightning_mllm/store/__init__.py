"""The one layer that writes files: whole or not at all, and tidy rows that grow as they come."""
