"""The texts about scenes: questions, answers, captions and conversations."""
