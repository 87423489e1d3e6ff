"""What the states of each layer say through the model's own head."""
