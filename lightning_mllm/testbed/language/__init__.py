"""What is said about scenes: questions, answers, captions and conversations."""
