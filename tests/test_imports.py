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

# package or module -> what it may import of ours; its own package is always allowed
BORDERS: dict[str, set[str]] = {
    "__init__": {"data", "models", "trainer", "types"},  # lazily
    "__main__": {"cli"},
    "types": set(),
    "errors": set(),
    "network": set(),
    "checkpoint_files": {"errors", "network"},
    "data": {"types", "errors", "checkpoint_files"},
    "evaluation": {"types", "errors", "checkpoint_files"},
    "probing": {"types", "errors", "evaluation"},
    "models": {"types", "errors", "checkpoint_files", "evaluation"},
    "analysis": {
        "types",
        "errors",
        "models",
        "evaluation",
        "probing",
    },  # of models only backbone, which a test below sees to
    "tracking": {"types", "errors", "network", "evaluation", "probing", "analysis"},
    "callbacks": {"types", "errors", "data", "models", "evaluation", "probing", "analysis", "tracking"},
    "testbed": {"types", "errors", "data"},
    "study": {"__version__", "errors", "tracking"},
    "trainer_options": {"errors"},
    "trainer": {"errors", "trainer_options", "data", "models", "analysis", "tracking", "callbacks"},
    "parser": {"analysis", "data", "evaluation", "models", "testbed"},
    "cli": {
        "errors",
        "analysis",
        "data",
        "evaluation",
        "models",
        "testbed",
        "callbacks",
        "tracking",
        "trainer",
        "parser",
        "study",
    },
}
# library -> the files that may import it
LIBRARIES: dict[str, set[str]] = {
    "wandb": {"tracking/log.py"},
    "matplotlib": {"tracking/figures.py", "tracking/study_figures.py", "tracking/analysis_figures.py"},
    "peft": {"models/lora.py"},
    "jsonargparse": {"cli.py", "parser.py"},
    "lightning": {
        "models/module.py",
        "data/base.py",
        "trainer.py",
        "parser.py",
        "cli.py",
        "callbacks/",
        "tracking/log.py",
        "tracking/metrics_file.py",
        "trainer_options.py",
    },
}
FILES = sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py"), *PACKAGE.glob("*/*/*.py")])


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
    here = relative.parts[0].removesuffix(".py")
    for name in _imports(file):
        top, *rest = name.split(".")
        if top == "lightning_mllm":
            assert rest[0] in BORDERS[here] | {here}, f"{relative} imports {name}"
        elif top in LIBRARIES:
            assert str(relative).startswith(tuple(LIBRARIES[top])), f"{relative} imports {name}"


def test_analyses_see_the_model_as_a_backbone_only() -> None:
    for file in (PACKAGE / "analysis").glob("*.py"):
        for name in _imports(file):
            assert not name.startswith("lightning_mllm.models") or ".models.backbone." in name, f"{file.name}: {name}"


def test_importing_the_package_does_nothing_visible() -> None:
    program = """
import os, random, sys, threading, warnings
import numpy, torch
before = (dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), list(warnings.filters),
          torch.get_default_dtype(), torch.get_num_threads(), sys.excepthook, threading.active_count())
import lightning_mllm
after = (dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), list(warnings.filters),
         torch.get_default_dtype(), torch.get_num_threads(), sys.excepthook, threading.active_count())
assert before == after, (before, after)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_library_imports_without_tracking_and_command_line_packages() -> None:
    program = """
import sys
for name in ("wandb", "omegaconf", "jsonargparse"):
    sys.modules[name] = None
import lightning_mllm.callbacks, lightning_mllm.data, lightning_mllm.models.module, lightning_mllm.trainer
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_callbacks_have_one_import_name() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, "-c", "import callbacks"], check=True, cwd=ROOT, capture_output=True)


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

    found = [*PACKAGE.glob("__init__.py"), *PACKAGE.glob("*/__init__.py"), *PACKAGE.glob("*/*/__init__.py")]
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in found}
    assert set(listed) == on_disk
