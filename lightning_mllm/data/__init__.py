"""From datasets to batches: samples, prompts, token spans, image geometry, and loaders that resume.

A dataset of your own is a subclass of `MLLMDataModule` with one method, `load(split)`.
"""

from lightning_mllm.data.base import MLLMDataModule
from lightning_mllm.data.collator import Collator
from lightning_mllm.data.crisismmd import CrisisMMD
from lightning_mllm.data.dermnet import DermNet
from lightning_mllm.data.digits import Digits
from lightning_mllm.data.dtd import DTD
from lightning_mllm.data.geometry import Geometry
from lightning_mllm.data.gqa import GQATasks
from lightning_mllm.data.image_folder import ImageFolder
from lightning_mllm.data.llava_json import LlavaJson
from lightning_mllm.data.plantdoc import PlantDoc
from lightning_mllm.data.processor import load_processor
from lightning_mllm.data.prompts import (
    LLAMA3_SYSTEM,
    SHORT_ANSWER,
    VICUNA_SYSTEM,
    ClassificationPrompt,
    ConversationPrompt,
    PlainPrompt,
    Prompt,
)
from lightning_mllm.data.published import Published, PublishedDataset
from lightning_mllm.data.sampling import BatchLoader, ResumableLoader
from lightning_mllm.data.splits import Split

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
