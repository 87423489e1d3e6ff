"""Fine-tune, watch and dissect multimodal LLMs with Lightning."""

__version__ = "0.1.0"
