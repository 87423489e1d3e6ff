"""The test-bed's models as Hugging Face folders: combined from trained parts, and found.

Models that share a part share its file: the index of each folder points to it, as in any sharded
checkpoint. `AutoModelForImageTextToText.from_pretrained` opens them like a checkpoint of the hub.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.store.files import replacing_folder

Stage = Literal["before", "aligned", "instructed"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ROOT = Path(__file__).parents[1] / "weights"

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_SHARED = "parts"
_WEIGHTS = "model.safetensors"
_PREFIXES = {
    "vision": ("vision_tower.", "model.vision_tower."),
    "projector": ("multi_modal_projector.", "model.multi_modal_projector."),
}


def checkpoint(stage: str = "instructed") -> str:
    """Return the folder of a stage of the model, for `from_pretrained` and `--model.checkpoint`.

    Args:
        stage: Stage of the training. "before": tower and LLM, trained separately, and an untrained
            projection between them; "aligned": the same with the projection trained, while the LLM
            was frozen; "instructed": projection and LLM trained on instructions.

    Raises:
        ConfigError: There is no such stage.
        CheckpointError: The models are not installed.
    """
    if stage not in STAGES:
        raise ConfigError(
            f"The test-bed has no stage {stage!r}. Choose one of {', '.join(STAGES)}."
        )
    if not (ROOT / stage).is_dir():
        raise CheckpointError(
            f"The test-bed's models are not in {ROOT}. `make testbed` trains them, into "
            f"checkpoints/testbed/weights. Copy that folder there, or use its folder {stage!r} as "
            "the checkpoint."
        )
    return str(ROOT / stage)


def part_of_checkpoint(name: str) -> str:
    """Return the part of a LLaVA that a saved weight belongs to: "vision", "projector" or "llm"."""
    for part, prefixes in _PREFIXES.items():
        if name.startswith(prefixes):
            return part
    return "llm"


def graft_checkpoint(output: Path, *, llm: Path, vision: Path, projector: Path) -> None:
    """Combine parts of checkpoints of the same shape; config and processor are the LLM's.

    Args:
        output: Folder of the new checkpoint.
        llm: Checkpoint whose LLM is used.
        vision: Checkpoint whose vision tower is used.
        projector: Checkpoint whose projection is used.

    Raises:
        CheckpointError: The checkpoints are not of the same shape.
    """
    sources = {
        "llm": read_checkpoint_weights(llm),
        "vision": read_checkpoint_weights(vision),
        "projector": read_checkpoint_weights(projector),
    }
    first, *others = map(_shapes_of, sources.values())
    if any(shapes != first for shapes in others):
        raise CheckpointError(
            f"{llm}, {vision} and {projector} are not checkpoints of one shape. Train all of them "
            "from the same checkpoint."
        )
    dtype = next(iter(sources["llm"].values())).dtype
    weights = {name: sources[part_of_checkpoint(name)][name].to(dtype) for name in sources["llm"]}
    with replacing_folder(output) as folder:
        _copy_small_files(llm, folder)
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})


def pack_checkpoints(
    root: Path, stages: Mapping[str, Path], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write checkpoints into one folder; a part that several of them have is one file.

    Their configs say float32, whatever the dtype of the files, so that `from_pretrained` opens them
    for the CPU.

    Args:
        root: Folder to create; `root/<stage>` are the checkpoints, `root/parts` the weights.
        stages: Name of the stage -> Hugging Face folder.
        dtype: Dtype of the weights in the files.
    """
    with replacing_folder(root) as folder:
        (folder / _SHARED).mkdir()
        written: dict[str, dict[str, Tensor]] = {}
        for stage, source in stages.items():
            weights = {
                name: tensor.to(dtype) for name, tensor in read_checkpoint_weights(source).items()
            }
            _copy_small_files(source, folder / stage)
            _open_as_float32(folder / stage / _CONFIG)
            size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
            files = _write_parts(folder / _SHARED, stage, weights, written)
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
            (folder / stage / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _open_as_float32(path: Path) -> None:
    """Set the dtype of a config and its sub-configs, of tower and LLM, to float32."""
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def _write_parts(
    folder: Path, stage: str, weights: Mapping[str, Tensor], written: dict[str, dict[str, Tensor]]
) -> dict[str, str]:
    """Write the parts of a checkpoint that no file has yet.

    Returns:
        Name of a weight -> its file, relative to the folder of the stage.
    """
    files = {}
    for part in ("vision", "projector", "llm"):
        own = {name: tensor for name, tensor in weights.items() if part_of_checkpoint(name) == part}
        equal = (file for file, others in written.items() if _is_equal(own, others))
        file = next(equal, f"{part}-{stage}.safetensors")
        if file not in written:
            save_file(own, folder / file, metadata={"format": "pt"})
            written[file] = own
        files.update({name: f"../{_SHARED}/{file}" for name in own})
    return files


def read_checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint that is one file.

    Raises:
        CheckpointError: There is no such file.
    """
    path = folder / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"There is no {path}. Expected a checkpoint that `lightning export` wrote."
        )
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _shapes_of(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def _is_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _copy_small_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and processor, but not the weights."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
