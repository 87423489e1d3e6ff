"""How knockouts are computed: full forward passes, or only the rows that can change."""
