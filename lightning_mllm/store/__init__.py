"""Files written whole, the settings and weights that made them, and seeds by name."""
