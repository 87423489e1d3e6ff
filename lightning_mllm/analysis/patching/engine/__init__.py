"""How patches are computed: by full forwards, or only where they can make a difference."""
