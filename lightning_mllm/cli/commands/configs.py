"""`lightning configs`: copies the shipped configs into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.config_files import SHIPPED
from lightning_mllm.cli.sentence_parser import SentenceParser
from lightning_mllm.errors import ConfigError


def run(name: str, arguments: list[str]) -> None:
    """Copy them; what is there already stays, unless it is to be overwritten."""
    parser = SentenceParser(
        prog=f"{PROGRAM} {name}",
        description="Copy the shipped configs into a folder, to read and to change.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="Folder for them; call it configs where a study is to be run, whose files name "
        "others as configs/...",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace files that are there and differ."
    )
    options = parser.parse_args(arguments)
    copy_configs(options.folder, overwrite=options.overwrite)


def copy_configs(folder: Path, *, overwrite: bool) -> None:
    """Copy the shipped configs.

    Raises:
        ConfigError: The folder is a file; or a file in it differs from ours, and nothing was said
            of overwriting; then nothing is copied.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a folder: `{PROGRAM} configs configs`.")
    files = [
        path for path in sorted(SHIPPED.rglob("*")) if path.is_file() and path.suffix != ".pyc"
    ]
    targets = {path: folder / path.relative_to(SHIPPED) for path in files}
    changed = [
        target
        for path, target in targets.items()
        if target.exists() and target.read_bytes() != path.read_bytes()
    ]
    if changed and not overwrite:
        count = "1 file differs" if len(changed) == 1 else f"{len(changed)} files differ"
        raise ConfigError(
            f"In {folder}, {count} from the shipped configs, e.g. {changed[0]}; nothing was "
            "copied. Choose another folder, or give --overwrite to lose the changes."
        )
    if not changed and all(target.is_file() for target in targets.values()):
        print(f"All {len(files)} files are in {folder} already; nothing was copied.")
        return
    for path, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    replaced = f", {len(changed)} of them replaced" if changed else ""
    print(f"{len(files)} files are in {folder}{replaced}; {folder / 'README.md'} lists them.")
    print(f"Start with: {PROGRAM} fit --config {folder / 'quickstart.yaml'}")
