"""Objects that are not in the picture: POPE and CHAIR."""
