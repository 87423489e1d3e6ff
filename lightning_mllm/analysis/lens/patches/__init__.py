"""The words that patches say, layer by layer, as numbers and as words."""
