"""Where config files are: the shipped ones, and those whose names are near a misspelt one."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import yaml

from lightning_mllm.cli.class_index import PACKAGE
from lightning_mllm.errors import ConfigError

SHIPPED = PACKAGE / "configs"
_ENDINGS = (".yaml", ".yml", ".json")
_FILES_OF_RUNS = ("status.json", "environment.json")  # JSON that is no config
_FOLDERS_SEARCHED = 1000  # so that a folder above a home is not walked through


def shipped_config_names() -> list[str]:
    """Return the paths of the shipped configs, relative to their folder."""
    return sorted(
        path.relative_to(SHIPPED).as_posix()
        for path in SHIPPED.rglob("*")
        if path.suffix in _ENDINGS
    )


def read_config_file(name: str) -> dict[str, object]:
    """Return what a config file, or a text in its place, says.

    Raises:
        ConfigError: There is no such file, or it is no YAML.
    """
    path = Path(name).expanduser()
    if "{" in name or ": " in name:  # a config may be written in place of its file
        content = yaml.safe_load(name)
        return content if isinstance(content, dict) else {}
    if path.is_dir():
        raise ConfigError(f"--config {name} is a folder, and a file is needed.{_files_in(path)}")
    if not path.is_file():
        raise ConfigError(f"There is no config file {name}.{_nearest_files(path)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not a text in UTF-8, so it is no config.") from error
    except (yaml.scanner.ScannerError, yaml.parser.ParserError) as error:
        raise ConfigError(_explain_yaml(name, error)) from error
    except yaml.YAMLError:
        return {}  # what the full parser makes of it
    return content if isinstance(content, dict) else {}


def _explain_yaml(name: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = "?" if mark is None else mark.line + 1
    if r"\t" in str(error.problem):
        return f"{name}, line {line}: a tab, which YAML forbids. Indent with spaces."
    began = f" (of what begins in line {error.context_mark.line + 1})" if error.context_mark else ""
    return (
        f"{name}, line {line}: no valid YAML: {error.problem}{began}. "
        "A bracket, a quote, a colon or the indentation is wrong there, or in the line above."
    )


def _files_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _ENDINGS)
    return f" In it are {', '.join(names[:8])}." if names else " It has no config in it."


def _nearest_files(wrong: Path) -> str:
    """Return the nearest file names: in the folder of the misspelt one, in `configs`, shipped."""
    here = [path.as_posix() for path in _configs_below(wrong.parent)]
    here += [path.as_posix() for path in _configs_below(Path("configs"))]
    near = get_close_matches(wrong.as_posix(), here, n=2, cutoff=0.75)
    near += [path for path in here if Path(path).name == wrong.name]
    near += _by_name(wrong.name, here)
    if near:
        return f'\nDid you mean "{near[0]}"?'
    shipped = shipped_config_names()
    if same := [each for each in shipped if each.endswith(wrong.name)] or _by_name(
        wrong.name, shipped
    ):
        return (
            f" The shipped configs have {same[0]}: copy them with `lightning configs configs`, "
            f"then give --config configs/{same[0]}."
        )
    return f" The folder is {wrong.absolute().parent}; `lightning configs DIR` copies ours."


def _by_name(wrong: str, paths: list[str]) -> list[str]:
    by_name = {path.rpartition("/")[2]: path for path in reversed(paths)}
    return [by_name[name] for name in get_close_matches(wrong, by_name, n=1, cutoff=0.7)]


def _configs_below(folder: Path) -> list[Path]:
    if folder == Path() or not folder.is_dir():
        return sorted(path for path in Path().iterdir() if path.suffix in _ENDINGS)
    found: list[Path] = []
    for count, path in enumerate(folder.rglob("*")):
        if count >= _FOLDERS_SEARCHED:
            break
        if path.suffix in _ENDINGS and path.name not in _FILES_OF_RUNS:
            found.append(path)
    return sorted(found)
