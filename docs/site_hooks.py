"""Puts files outside docs/ into the site, so that the same links work there and on a code host.

A page links to `../configs/quickstart.yaml`, to a notebook or to `../lightning_mllm/types.py`. In
the site, each such file is a page of its own below `files/`: text in a block of code, Markdown
as it is, notebooks with their outputs.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")  # a link without a scheme
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file outside docs/ that a page links to, directly or through another."""
    waiting = [
        target
        for file in files.documentation_pages()
        for target in _outside(file.content_string, _repository_path(file.src_uri))
    ]
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        content = _page_of(path)
        waiting += _outside(content, path)
        page = File.generated(
            config, _site_uri(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV
        )
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to files outside docs/ to the pages of these files."""
    here = _repository_path(page.file.src_uri)

    def point(match: re.Match[str]) -> str:
        target = _target(match[2], here)
        if _site_uri(target) == match[2] or not target.is_file():
            return match[0]
        start = Path(page.file.src_uri).parent
        uri = os.path.relpath(_site_uri(target), start).replace(os.sep, "/")
        return f"{match[1]}{uri}{match[3] or ''}{match[4]}"

    return LINK.sub(point, markdown)


def _repository_path(uri: str) -> Path:
    """Return the file that a page of the site shows."""
    if uri.startswith("files/"):
        return ROOT / uri.removeprefix("files/").removesuffix(".page.md")
    return ROOT / "docs" / uri


def _site_uri(path: Path) -> str:
    """Return where a file of the repository is in the site's sources."""
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    return f"files/{path.relative_to(ROOT).as_posix()}.page.md"


def _target(link: str, source: Path) -> Path:
    return Path(os.path.normpath(source.parent / link))


def _outside(text: str, source: Path) -> list[Path]:
    """Return the files outside docs/ that a text links to; the build warns of missing ones."""
    targets = [_target(match[2], source) for match in LINK.finditer(text)]
    return [
        path
        for path in targets
        if path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")
    ]


def _page_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".ipynb":
        return "\n\n".join([_markdown_of(cell) for cell in json.loads(text)["cells"]])
    return f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"


def _markdown_of(cell: dict[str, Any]) -> str:
    """Return a cell of a notebook with its outputs as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"````python\n{source}\n````"]
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            parts.append(f"![Output of the cell above](data:image/png;base64,{picture})")
        elif "text/markdown" in data:
            parts.append("".join(data["text/markdown"]))
        elif text := "".join(output.get("text", data.get("text/plain", ""))):
            parts.append(f"````text\n{text}\n````")
    return "\n\n".join(parts)
