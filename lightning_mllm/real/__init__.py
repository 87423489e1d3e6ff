"""The model of real parts: a small language model that sees photographs."""
