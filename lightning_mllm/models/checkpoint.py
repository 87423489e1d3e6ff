"""Training checkpoints without the frozen weights, and the projector as a file of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from glob import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_mllm.errors import CheckpointError
from lightning_mllm.models.backbone import Backbone, Part, fingerprint_backbone
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.shard_values import copy_values
from lightning_mllm.store.files import PARTIAL, replacing_file, write_tensor_file

logger = logging.getLogger(__name__)

KEY = "lightning_mllm"  # our entry in a Lightning checkpoint


def describe_checkpoint(
    backbone: Backbone, checkpoint: str, report: FreezeReport, edit: object
) -> dict[str, Any]:
    """Return what identifies the model of a training checkpoint, in plain types."""
    shapes: dict[str, list[int]] = {}
    for name in report.trainable_names:
        shapes[name] = list(backbone.model.get_parameter(name).shape)
    return {
        **describe_quantization(backbone),
        "checkpoint": checkpoint,
        "fingerprint": backbone.fingerprint,
        "policy": report.policy,
        "edited": edit is not None,
        "trainable": shapes,
    }


def describe_quantization(backbone: Backbone) -> dict[str, str]:
    """Return `quantized` and how a model's weights are quantised; nothing for a plain model."""
    return {} if backbone.quantized is None else {"quantized": backbone.quantized}


def check_checkpoint_fits(
    found: Mapping[str, Any] | None, expected: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Refuse a training checkpoint that was written for another model or policy.

    Args:
        found: Description in the checkpoint (see `describe_checkpoint`); None if this package did
            not write it.
        expected: Description of the model that is to be loaded.
        state: The checkpoint's weights.

    Raises:
        CheckpointError: The checkpoint was not written by this package, or its base weights or
            trainable parameters are not those of the model.
    """
    if found is None:
        raise CheckpointError(
            "This checkpoint was not written by lightning_mllm: it does not say which model it "
            "belongs to. Expected a file from a run's checkpoints/ folder."
        )
    if found["fingerprint"] != expected["fingerprint"]:
        raise CheckpointError(
            f"The checkpoint holds trained parts of {found['checkpoint']!r} (weights "
            f"{found['fingerprint']}), but the model is {expected['checkpoint']!r} (weights "
            f"{expected['fingerprint']}). Set model.checkpoint, and model.projector if it was set, "
            "to what it was trained on; a model trained in bfloat16 or float32 can't be "
            "opened in float16."
        )
    then, now = found.get("quantized"), expected.get("quantized")
    if then != now:
        logger.warning(
            "The checkpoint was trained with %s weights in the LLM and is used with %s ones: loss "
            "and scores differ a little from those of its run.",
            then or "unquantised",
            now or "unquantised",
        )
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    if found["policy"] != expected["policy"] or shapes != expected["trainable"]:
        raise CheckpointError(
            f"The checkpoint was trained under {found['policy']} ({len(shapes)} parameter "
            f"tensors), but model.policy is {expected['policy']} ({len(expected['trainable'])} "
            "tensors). Use the same policy; to start another "
            "from these weights, `lightning export` them and fit from the exported folder."
        )


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a training checkpoint, whole or not at all.

    Raises:
        CheckpointError: The disk is full or can't be written; what was at `path` is untouched.
    """
    try:
        with replacing_file(path, durable=True) as temporary:
            torch.save(checkpoint, temporary)
        for leftover in path.parent.glob(f"{escape(path.name)}.*{PARTIAL}"):  # of killed processes
            leftover.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise CheckpointError(
            f"{path} could not be written: {error}. Earlier checkpoints are intact. Free some "
            "space or set trainer.run.root to another disk, then go on with --ckpt_path <the last "
            "checkpoint>."
        ) from error


def load_training_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, as data only: none of its code is run.

    Args:
        path: The file.
        mapped: Whether tensors stay in the file until they are used, so that many processes can
            open it at once.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint file {path}. Expected e.g. runs/<name>/checkpoints/last.ckpt."
        )
    _know_optimizer_states(path)
    try:
        content: dict[str, Any] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=mapped
        )
    except Exception as error:  # the type depends on the damage: EOFError, UnpicklingError, ...
        # torch's own text is left out: it advises to switch the protection off
        raise CheckpointError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}): it is damaged, or "
            "holds more than data. Use an earlier one."
        ) from error
    return content


def _know_optimizer_states(path: Path) -> None:
    """Import torchao if a checkpoint has its states, which torch then takes for data.

    Raises:
        CheckpointError: It is not installed.
    """
    try:
        unknown = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is damaged, which reading it tells
        return
    if not any(name.startswith("torchao.") for name in unknown):
        return
    if find_spec("torchao") is None:
        raise CheckpointError(
            f"{path} was written by a run with an optimiser of torchao, which is not installed: "
            'pip install "lightning-mllm[torchao]".'
        )
    import_module("torchao.optim")


def save_projector(backbone: Backbone, path: Path, dtype: torch.dtype) -> None:
    """Write the projection (for LLaVA-NeXT with `image_newline`) as a safetensors file.

    Raises:
        OSError: The disk is full or can't be written.
    """
    tensors = {
        name: parameter.detach().to("cpu", dtype)
        for name, parameter in backbone.parameters(Part.PROJECTOR)
    }
    metadata = {"format": "pt", "base": backbone.fingerprint}
    write_tensor_file(path, tensors, metadata, durable=True)


@torch.no_grad()
def load_projector(backbone: Backbone, path: Path) -> None:
    """Put a saved projection into a model, in place.

    Raises:
        CheckpointError: The file is missing or damaged, or its tensors are not those of this
            model's projection.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no projector file {path}. Expected a projector.safetensors of an export."
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}).") from error
    own = dict(backbone.parameters(Part.PROJECTOR))
    expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(
            f"The projector file {path} does not fit the model. Found {found}; expected "
            f"{expected}. A projection can only move between models with the same tower width and "
            "LLM width."
        )
    for name, tensor in tensors.items():
        copy_values(own[name], tensor)
    backbone.fingerprint = fingerprint_backbone(
        backbone.model
    )  # training starts from these weights
