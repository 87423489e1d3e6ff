"""Decide when science happens during training. Imported as `lightning_mllm.callbacks`."""

if __name__ != "lightning_mllm.callbacks":
    raise ImportError(f"Import these callbacks as lightning_mllm.callbacks, not as {__name__}: one file, one class.")
