"""Shows results: numbers to CSV and Weights & Biases (`log`), pictures to PNG (`figures`)."""
