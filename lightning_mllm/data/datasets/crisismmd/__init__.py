"""CrisisMMD v2.0: pictures of tweets about disasters."""
