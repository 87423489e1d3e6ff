"""Numbers and words on single pictures: what each patch says, is looked at, and is needed for."""
