"""Free-form answers: exact match with the reference, per kind of question."""
