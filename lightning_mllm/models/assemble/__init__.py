"""Makes an MLLM of a vision tower and a language model that were trained apart."""
