"""The blocks of code of README and docs: what they hold, and which of them can't be run, and why.

`python -m tests.support.doc_commands` lists every command of the pages: those that
`tests/test_doc_commands.py` runs, and those that it can't run, with the reason.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_ASSIGNMENT = re.compile(r"^(\w+)=(.*)$", re.DOTALL)
_NOT_RUN = (  # a regular expression for what a command line has, and why it is not run
    (r"^make ", "sets up an environment, or takes hours"),
    (r"^pip ", "changes the environment"),
    (r"^source ", "changes the shell"),
    (r"^python tests/benchmarks/", "a benchmark: minutes on an idle machine"),
    (r"^python -m lightning_mllm\.testbed", "trains for hours"),
    (r"^python -m tests\.support\.memory_page", "minutes; a slow test compares the tables"),
    (r"\.\.\.", "shows a part of a command"),
    (r"^lightning study (?!.*--dry-run)", "a grid of runs: hours; the plan is tried elsewhere"),
    (
        r"^lightning data gqa-tasks",
        "needs GQA's files; tests/integration has small ones",
    ),
    (r"fit --config configs/quickstart\.yaml", "minutes; tests/test_configs.py tries it"),
    (r"testbed_training/", "trains for long; tests/test_configs.py tries it"),
    (r"^lightning --", "tests/cli has it"),
)


@dataclass(frozen=True)
class DocBlock:
    """A block of code.

    Attributes:
        page: The file.
        line: Number of its first line, for messages.
        language: `bash`, `python`, `yaml`, ...
        text: What is in it.
        reason: Why it is not run; empty if it is.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str


@dataclass(frozen=True)
class DocCommand:
    """A command line of a page.

    Attributes:
        page: The file.
        line: Number of the first line of its block.
        words: The program and its arguments.
        reason: Why it is not run; empty if it is.
    """

    page: Path
    line: int
    words: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return shlex.join(self.words)


def doc_blocks(page: Path) -> Iterator[DocBlock]:
    """Yield the blocks of a page that name a language."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield DocBlock(page, line, match["language"], match["text"], match["reason"] or "")


def doc_commands(page: Path) -> Iterator[DocCommand]:
    """Yield the commands of a page, variables replaced."""
    variables: dict[str, str] = {}
    for block in doc_blocks(page):
        if block.language == "bash":
            yield from commands_of_block(block, variables)


def inline_code(page: Path) -> set[str]:
    """Return what a page has in backticks, outside blocks of code."""
    return set(_INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))))


def commands_of_block(block: DocBlock, variables: dict[str, str]) -> Iterator[DocCommand]:
    """Yield the commands of a block; variables that it sets are added to those of the page."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            name = word.removeprefix("$")
            words += variables[name].split() if name in variables and name != word else [word]
        while words and (found := _ASSIGNMENT.match(words[0])):
            variables[found[1]] = found[2]
            del words[0]
        if words:
            yield DocCommand(
                block.page, block.line, tuple(words), block.reason or _why_not_run(words)
            )


def _why_not_run(words: list[str]) -> str:
    line = " ".join(words)
    return next((reason for found, reason in _NOT_RUN if re.search(found, line)), "")


def main() -> None:
    """List the commands of all pages."""
    for page in PAGES:
        for command in doc_commands(page):
            verdict = f"not run: {command.reason}" if command.reason else "run"
            print(f"{page.relative_to(ROOT)}:{command.line}: {command}\n    {verdict}")


if __name__ == "__main__":
    main()
