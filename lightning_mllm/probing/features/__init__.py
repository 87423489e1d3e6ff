"""Features of the model at chosen points: tapped, pooled, extracted, cached and stored."""
