"""Fine-tune, watch and dissect multimodal LLMs with Lightning.

The names that a script or a notebook needs most are here. They are imported when they are used, so
that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_mllm.callbacks.defaults import default_callbacks as default_callbacks
    from lightning_mllm.data.loading.datamodule import MLLMDataModule as MLLMDataModule
    from lightning_mllm.messages import show_messages as show_messages
    from lightning_mllm.models.module import MLLMModule as MLLMModule
    from lightning_mllm.run import Run as Run
    from lightning_mllm.trainer import Trainer as Trainer
    from lightning_mllm.types import Box as Box
    from lightning_mllm.types import Sample as Sample
    from lightning_mllm.types import Turn as Turn

__version__ = "0.1.0"

_HOMES = {
    "Box": "types",
    "MLLMDataModule": "data.loading.datamodule",
    "MLLMModule": "models.module",
    "Run": "run",
    "Sample": "types",
    "Trainer": "trainer",
    "Turn": "types",
    "default_callbacks": "callbacks",
    "show_messages": "messages",
}
__all__ = [
    "Box",
    "MLLMDataModule",
    "MLLMModule",
    "Run",
    "Sample",
    "Trainer",
    "Turn",
    "__version__",
    "default_callbacks",
    "show_messages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
