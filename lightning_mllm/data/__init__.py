"""From datasets to batches: samples, prompts, token spans, image geometry, and loaders that resume.

A dataset of your own is a subclass of `MLLMDataModule` with one method, `load(split)`.
"""

from lightning_mllm.data.datasets.crisismmd.dataset import CrisisMMD
from lightning_mllm.data.datasets.dermnet import DermNet
from lightning_mllm.data.datasets.digits import Digits
from lightning_mllm.data.datasets.dtd import DTD
from lightning_mllm.data.datasets.gqa.tasks import GQATasks
from lightning_mllm.data.datasets.hf_columns import HFColumns
from lightning_mllm.data.datasets.hf_dataset import HFDataset
from lightning_mllm.data.datasets.image_folder import ImageFolder
from lightning_mllm.data.datasets.llava_json import LlavaJson
from lightning_mllm.data.datasets.plantdoc import PlantDoc
from lightning_mllm.data.datasets.published import Published, PublishedDataset
from lightning_mllm.data.images.geometry import Geometry
from lightning_mllm.data.images.processor import load_processor
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.loaders import BatchLoader, ResumableLoader
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.prompts import (
    LLAMA3_SYSTEM,
    SHORT_ANSWER,
    VICUNA_SYSTEM,
    ClassificationPrompt,
    ConversationPrompt,
    PlainPrompt,
    Prompt,
)

__all__ = [
    "DTD",
    "LLAMA3_SYSTEM",
    "SHORT_ANSWER",
    "VICUNA_SYSTEM",
    "BatchLoader",
    "ClassificationPrompt",
    "Collator",
    "ConversationPrompt",
    "CrisisMMD",
    "DermNet",
    "Digits",
    "GQATasks",
    "Geometry",
    "HFColumns",
    "HFDataset",
    "ImageFolder",
    "LlavaJson",
    "MLLMDataModule",
    "PlainPrompt",
    "PlantDoc",
    "Prompt",
    "Published",
    "PublishedDataset",
    "ResumableLoader",
    "Split",
    "load_processor",
]
