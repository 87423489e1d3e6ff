"""The test-bed's models, as Hugging Face folders: put together from trained parts, and found where they are installed.

Models that share a part share its file: the index of each folder points to it, as that of any sharded checkpoint does.
`AutoModelForImageTextToText.from_pretrained` opens them like a checkpoint of the hub.
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
    """Return the folder of a stage of the test-bed's model, for `from_pretrained` and `--model.checkpoint`.

    Args:
        stage: "before": tower and LLM, each trained for itself, and an untrained projection between them; "aligned":
            the same with the projection trained, the LLM still frozen; "instructed": projection and LLM trained on
            instructions.

    Raises:
        ConfigError: There is no such stage.
        CheckpointError: The models are not there.
    """
    if stage not in STAGES:
        raise ConfigError(f"The test-bed has no stage {stage!r}. Choose one of {', '.join(STAGES)}.")
    if not (ROOT / stage).is_dir():
        raise CheckpointError(
            f"The test-bed's models are not in {ROOT}. `make testbed` trains them, into checkpoints/testbed/weights; "
            f"copy that folder there, or name its folder {stage!r} as the checkpoint."
        )
    return str(ROOT / stage)


def part_of(name: str) -> str:
    """Return which part of a LLaVA a weight of a saved checkpoint belongs to: "vision", "projector" or "llm"."""
    for part, prefixes in _PREFIXES.items():
        if name.startswith(prefixes):
            return part
    return "llm"


def graft(output: Path, *, llm: Path, vision: Path, projector: Path) -> None:
    """Put a checkpoint together from parts of others of the same shape; config and processor are the LLM's.

    Args:
        output: Folder to make.
        llm: Checkpoint whose LLM is taken.
        vision: Checkpoint whose vision tower is taken.
        projector: Checkpoint whose projection is taken.

    Raises:
        CheckpointError: The checkpoints are not of the same shape.
    """
    sources = {"llm": read_weights(llm), "vision": read_weights(vision), "projector": read_weights(projector)}
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in sources.values()]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise CheckpointError(f"{llm}, {vision} and {projector} are not checkpoints of one shape.")
    dtype = next(iter(sources["llm"].values())).dtype
    weights = {name: sources[part_of(name)][name].to(dtype) for name in sources["llm"]}
    with replacing_folder(output) as folder:
        _copy_small_files(llm, folder)
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})


def pack(root: Path, stages: Mapping[str, Path], dtype: torch.dtype = torch.bfloat16) -> None:
    """Write checkpoints beside each other, with one file for each part that several of them have.

    Their configs say float32 throughout, whatever the dtype of the files: so `from_pretrained` opens them for the CPU.

    Args:
        root: Folder to make; `root/<stage>` are the checkpoints, `root/parts` the weights.
        stages: Name -> Hugging Face folder.
        dtype: Of the weights in the files.
    """
    with replacing_folder(root) as folder:
        (folder / _SHARED).mkdir()
        written: dict[str, dict[str, Tensor]] = {}
        for stage, source in stages.items():
            weights = {name: tensor.to(dtype) for name, tensor in read_weights(source).items()}
            _copy_small_files(source, folder / stage)
            _open_as_float32(folder / stage / _CONFIG)
            size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
            files = _write_parts(folder / _SHARED, stage, weights, written)
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
            (folder / stage / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _open_as_float32(path: Path) -> None:
    """Let a config and its sub-configs, of tower and LLM, say that the weights are opened as float32."""
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def _write_parts(
    folder: Path, stage: str, weights: Mapping[str, Tensor], written: dict[str, dict[str, Tensor]]
) -> dict[str, str]:
    """Write those parts of a checkpoint that no file has yet; return the file of each weight, seen from the stage."""
    files = {}
    for part in ("vision", "projector", "llm"):
        own = {name: tensor for name, tensor in weights.items() if part_of(name) == part}
        file = next((file for file, others in written.items() if _equal(own, others)), f"{part}-{stage}.safetensors")
        if file not in written:
            save_file(own, folder / file, metadata={"format": "pt"})
            written[file] = own
        files.update({name: f"../{_SHARED}/{file}" for name in own})
    return files


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint of one file.

    Raises:
        CheckpointError: There is no such file.
    """
    path = folder / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"There is no {path}. Expected a checkpoint that `lightning export` wrote.")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _copy_small_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and processor, but no weights."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
