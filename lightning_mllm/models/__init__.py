"""The MLLM: its parts, what of it is trained, its loss, its checkpoints."""
