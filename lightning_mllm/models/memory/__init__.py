"""How much memory of a device a training needs, by part, found without a device."""
