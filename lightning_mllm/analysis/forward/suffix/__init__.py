"""Only the rows that an edit can change; all others keep the clean run's keys and values."""
