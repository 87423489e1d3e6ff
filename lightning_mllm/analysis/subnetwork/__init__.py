"""Which weights each task and modality uses, and the accuracy of the model with only these."""
