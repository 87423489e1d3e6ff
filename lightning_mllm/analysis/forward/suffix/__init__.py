"""Only the rows that an edit can change, with the keys and values of the clean run for all others."""
