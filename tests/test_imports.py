"""Who may import whom, and what an import may do."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_mllm"

SHARED = {"types", "batches", "errors", "progress"}
MODELS = {
    "models/attention_calls",
    "models/backbone",
    "models/free_memory",
    "models/placement",
    "models/hooks",
    "models/layers",
    "models/vision",
}  # what plain science may see of a model
SCIENCE = (
    SHARED
    | MODELS
    | {
        "alignment_names",
        "families",
        "store",
        "statistics",
        "evaluation",
        "probing",
        "analysis/core",
        "analysis/forward",
    }
)
EXPERIMENTS = (
    "attention",
    "knockout",
    "lens",
    "alignment",
    "separability",
    "subnetwork",
    "skipping",
    "grounding",
    "steering",
    "patching",
    "picture_maps",
    "dropping",
    "modality_gap",
)
STUDIES = ("projection", "alignment")

# room -> the rooms that it may import; its own always, and a room includes those inside it
BORDERS: dict[str, set[str]] = {
    "__init__": {"callbacks", "data", "messages", "models", "run", "trainer", "types"},  # lazily
    "__main__": {"cli"},
    "types": set(),
    "batches": {"types"},
    "errors": set(),
    "progress": set(),
    "families": {"types", "errors"},
    "network": set(),
    "messages": {"progress"},
    "alignment_names": set(),
    "checkpoint_files": {"errors", "network"},
    "store": SHARED,
    "statistics": SHARED | {"store/seeds"},
    "data": SHARED | {"checkpoint_files", "families", "store", "statistics"},
    "evaluation": SHARED | {"checkpoint_files", "families", "store", "statistics"},
    "models": SHARED | {"__version__", "checkpoint_files", "families", "store", "evaluation"},
    "probing": SHARED | MODELS | {"store", "statistics", "evaluation"},
    "analysis/__init__": {"analysis", "statistics"},  # the names that users import
    "analysis/core": SCIENCE,
    "analysis/forward": SCIENCE,
    **{f"analysis/{experiment}": SCIENCE for experiment in EXPERIMENTS},
    "tracking": SHARED
    | {"network", "store", "statistics", "evaluation", "probing", "analysis/core"},
    "callbacks": SHARED
    | {"store", "statistics", "data", "models", "probing", "analysis", "evaluation", "tracking"}
    | {"alignment_names"},
    "recipe": {"store"},
    "testbed": SHARED | {"recipe", "store", "data", "models"},
    "real": {"errors", "evaluation", "progress", "recipe", "store"},
    "study/__init__": {"study"},
    "study/engine": {"__version__", "errors", "progress", "store", "tracking"},
    **{
        f"study/{study}": {
            "errors",
            "alignment_names",
            "store",
            "statistics",
            "tracking",
            "study/engine",
        }
        for study in STUDIES
    },
    "run": {"errors", "run_status", "tracking"},
    "run_status": {"__version__", "errors", "store", "tracking"},
    "option_lists": set(),
    "fsdp2_strategy": {"errors", "models"},
    "process_watch": {"errors"},
    "trainer_options": {"errors", "fsdp2_strategy", "option_lists"},
    "analyzing": SHARED | {"data", "models", "tracking", "analysis/core"},
    "comparison": SHARED | {"store", "statistics", "tracking"},
    "trainer": SHARED
    | {"analyzing", "run", "run_status", "option_lists", "trainer_options", "trainer_bank"}
    | {"fsdp2_strategy"}
    | {"data", "models", "tracking"}
    | {"analysis/core", "analysis/subnetwork"},
    "trainer_bank": {"analysis/lens", "data", "errors", "models", "trainer_verbs"},
    "trainer_verbs": SHARED | {"data", "models", "probing", "process_watch", "run_status"},
    "cli": {
        "__version__",
        "batches",
        "errors",
        "option_lists",
        "analysis",
        "callbacks",
        "comparison",
        "progress",
        "data",
        "evaluation",
        "fsdp2_strategy",
        "messages",
        "models",
        "probing",
        "store",
        "study",
        "testbed",
        "tracking",
        "trainer",
        "trainer_options",
        "types",
    },
}
# library -> the files that may import it
LIBRARIES: dict[str, set[str]] = {
    "wandb": {"tracking/loggers.py"},
    "matplotlib": {"tracking/figures/"},
    "peft": {"models/lora.py"},
    "torchao": {"models/optimisation/offload.py", "models/memory/remedies.py"},
    "bitsandbytes": {"models/quantization.py"},
    "datasets": {"data/datasets/hf_source.py"},
    "pyarrow": set(),
    "xxhash": {"data/datasets/hf_pictures.py"},
    "jsonargparse": {"cli/"},
    "lightning": {
        "models/evaluating.py",
        "models/module.py",
        "analyzing.py",
        "fsdp2_strategy.py",
        "process_watch.py",
        "run.py",
        "run_status.py",
        "data/loading/datamodule.py",
        "data/datasets/hf_dataset.py",
        "trainer.py",
        "cli/",
        "callbacks/",
        "tracking/loggers.py",
        "tracking/metrics_file.py",
        "trainer_options.py",
        "trainer_bank.py",
        "trainer_verbs.py",
    },
}
FILES = sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("callbacks/*.py")])  # rglob follows no links


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_keep_to_the_borders(file: Path) -> None:
    relative = file.relative_to(PACKAGE)
    here = _room_of(relative.with_suffix("").as_posix())
    for name in _imports(file):
        top, *rest = name.split(".")
        if top == "lightning_mllm":
            path = "/".join(rest)
            assert _is_within(path, BORDERS[here] | {here}), f"{relative} imports {name}"
        elif top in LIBRARIES:
            assert str(relative).startswith(tuple(LIBRARIES[top])), f"{relative} imports {name}"


def _room_of(path: str) -> str:
    """Return the smallest room of the table that a module is in."""
    return max((room for room in BORDERS if _is_within(path, {room})), key=len)


def _is_within(path: str, rooms: set[str]) -> bool:
    return any(path == room or path.startswith(f"{room}/") for room in rooms)


def test_no_experiment_and_no_study_imports_another() -> None:
    for group, members in (("analysis", EXPERIMENTS), ("study", STUDIES)):
        rooms = {f"{group}/{member}" for member in members}
        assert all(not (BORDERS[room] & (rooms - {room})) for room in rooms)
        assert {
            path.name for path in (PACKAGE / group).iterdir() if (path / "__init__.py").exists()
        } >= set(members)


def test_importing_the_package_does_nothing_visible() -> None:
    program = """
import os, random, sys, threading, warnings
import numpy, torch
before = (dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), \
list(warnings.filters),
          torch.get_default_dtype(), torch.get_num_threads(), sys.excepthook, \
threading.active_count())
import lightning_mllm
after = (dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), \
list(warnings.filters),
         torch.get_default_dtype(), torch.get_num_threads(), sys.excepthook, \
threading.active_count())
assert before == after, (before, after)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_library_imports_without_tracking_and_command_line_packages() -> None:
    program = """
import sys
for name in ("omegaconf", "jsonargparse", "bitsandbytes"):
    sys.modules[name] = None
import lightning_mllm.callbacks, lightning_mllm.data, lightning_mllm.models.module, \
lightning_mllm.trainer
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_callbacks_have_one_import_name() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import callbacks"], check=True, cwd=ROOT, capture_output=True
        )


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

    found = [*PACKAGE.rglob("__init__.py"), PACKAGE / "callbacks" / "__init__.py"]
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in found}
    assert set(listed) == on_disk | {"lightning_mllm.configs"}  # files only
