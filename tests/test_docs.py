"""README, docs and CITATION.cff hold together: links, anchors, tables, length."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

import lightning_mllm
from lightning_mllm import analysis, callbacks
from tests.support.doc_commands import PAGES, ROOT, doc_commands, inline_code

README = (ROOT / "README.md").read_text()
LINKED = [*PAGES, *sorted((ROOT / "docs/api").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found[re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")] += 1
    return set(found)


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_nothing_is_left_to_fill_in_and_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if target.startswith(("http:", "https:")):
            continue
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            wrong.append(link)

    assert wrong == []
    assert "@@" not in text


def test_every_policy_is_in_the_readme() -> None:
    for path in (ROOT / "configs" / "policy").glob("*.yaml"):
        assert f"`{path.name}`" in README, path.name


def test_every_callback_and_analysis_is_in_the_readme_or_a_default() -> None:
    described = inline_code(ROOT / "README.md") | inline_code(ROOT / "docs/api/callbacks.md")
    words = {word.strip("`, ") for code in described for word in code.split()}
    found = (getattr(analysis, each) for each in analysis.__all__)
    analyses = {
        each.__name__
        for each in found
        if isinstance(each, type)
        and issubclass(each, analysis.Analysis)
        and each is not analysis.Analysis
    }

    assert {*callbacks.__all__} - words == set()
    assert analyses - words == set()


def test_the_citation_is_of_this_version_and_names_what_the_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())

    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == lightning_mllm.__version__
    assert citation["license"] == "Apache-2.0"
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        title = reference["title"]
        assert title in (ROOT / "docs/papers.md").read_text(), title


def test_each_page_is_in_the_sites_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name in ("docs", "api")]

    assert [
        name(page) for page in pages if name(page).removeprefix("docs/") not in navigation
    ] == []


def test_the_readme_shows_commands_for_a_model_and_pictures_of_ones_own() -> None:
    lines = [str(command) for command in doc_commands(ROOT / "README.md")]

    assert any("smolvlm" in line and "image_folder" in line for line in lines)
