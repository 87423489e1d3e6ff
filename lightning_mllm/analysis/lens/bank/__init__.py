"""A bank of contextual text states, in which the nearest to a patch is looked up."""
