"""Every command, option, config and block of code of README and docs, tried.

The quick tests look up what pages name. The slow ones run the pages, on tiny checkpoints and small
data in place of those that a page names. `python -m tests.support.doc_commands` lists what is run,
and what is not and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_mllm import callbacks
from lightning_mllm.cli.commands import COMMANDS
from lightning_mllm.cli.commands.command import Command
from tests.conftest import TinyBuilder
from tests.support.command_line import isolate
from tests.support.doc_commands import (
    PAGES,
    ROOT,
    DocCommand,
    doc_blocks,
    doc_commands,
    inline_code,
)
from tests.support.doc_options import KnownOptions
from tests.support.doc_pages import PageRunner

COMMANDS_OF_PAGES = [command for page in PAGES for command in doc_commands(page)]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
BENCHMARKS = "".join(path.read_text() for path in (ROOT / "tests/benchmarks").glob("*.py"))
OTHER_PROGRAMS = {"pip", "source"}
RUN_ELSEWHERE = {  # page -> where its commands are run
    "assemble.md": "tests/integration/test_assemble.py, with parts that it builds",
    "extract.md": "tests/integration/test_pages_of_verbs.py",
    "ask_and_predict.md": "tests/integration/test_pages_of_verbs.py",
    "information_flow.md": "knockout.md has the same command",
    "implicit_alignment.md": "alignment.md, subnetworks.md and skipping.md have the same commands",
}
NOT_THERE = {"--model.lr"}  # the text says so


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def where(command: DocCommand) -> str:
    return f"{name(command.page)}:{command.line}: {command}"


def commands_of(program: str) -> Iterator[DocCommand]:
    return (command for command in COMMANDS_OF_PAGES if command.words[0] == program)


@pytest.fixture(scope="module")
def known() -> KnownOptions:
    return KnownOptions()


def named_command(words: tuple[str, ...]) -> Command | None:
    for command in COMMANDS:
        parts = tuple(command.name.split())
        if words[1 : 1 + len(parts)] == parts:
            return command
    return None


def test_pages_have_commands_and_only_of_programs_that_are_looked_up() -> None:
    programs = {command.words[0] for command in COMMANDS_OF_PAGES}

    assert programs == {"lightning", "make", "python", *OTHER_PROGRAMS} & programs
    assert len(COMMANDS_OF_PAGES) > 50


def test_every_command_of_ours_is_one_and_knows_the_options_that_pages_give(
    known: KnownOptions,
) -> None:
    wrong: list[str] = []
    for command in commands_of("lightning"):
        if command.words[1].startswith("-"):
            continue
        found = named_command(command.words)
        if found is None:
            wrong.append(f"{where(command)}: no such command")
            continue
        for word in command.words[2:]:
            if word.startswith("--") and not known.has(found, word):
                wrong.append(f"{where(command)}: no option {word}")

    assert wrong == []


def test_every_option_in_the_text_exists(known: KnownOptions) -> None:
    wrong: list[str] = []
    for page in PAGES:
        for code in inline_code(page):
            options = [word for word in code.split() if re.match(r"--[a-z]", word)]
            program = code.split()[0]
            if options and program in ("lightning", options[0]):
                wrong += [
                    f"{name(page)}: {option}"
                    for option in options
                    if not known.anywhere(option) and option not in NOT_THERE and "*" not in option
                ]

    assert wrong == []


def test_every_config_that_a_page_names_exists() -> None:
    for page in PAGES:
        named = re.findall(r"(?<![\w/])(configs/[\w./-]+\.yaml)", page.read_text())
        assert [each for each in named if not (ROOT / each).is_file()] == [], name(page)


def test_every_callback_that_a_command_adds_exists() -> None:
    for command in COMMANDS_OF_PAGES:
        words = dict(zip(command.words, command.words[1:], strict=False))
        added = words.get("--trainer.callbacks+")
        assert added is None or added in callbacks.__all__, where(command)


def test_every_target_of_make_exists() -> None:
    for command in commands_of("make"):
        assert {word for word in command.words[1:] if "=" not in word} <= TARGETS, where(command)


def test_every_script_exists_and_has_the_options_that_pages_give() -> None:
    for command in commands_of("python"):
        script = command.words[1]
        if script == "-m":
            assert find_spec(command.words[2]), where(command)
            continue
        assert (ROOT / script).is_file(), where(command)
        for word in command.words[2:]:
            field = word.removeprefix("--").replace("-", "_")
            known = f'"{word}"' in BENCHMARKS or re.search(rf"\b{field}\b", BENCHMARKS)
            assert not word.startswith("--") or known, where(command)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_on_a_page_is_python(page: Path) -> None:
    for block in doc_blocks(page):
        if block.language == "python":
            compile(block.text, f"{name(page)}:{block.line}", "exec")


def can_be_run(page: Path) -> bool:
    if page.name in RUN_ELSEWHERE:
        return False
    commands = any(not command.reason for command in doc_commands(page))
    code = (block for block in doc_blocks(page) if block.language in ("python", "yaml"))
    return commands or any(not block.reason for block in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a page's Python leaves files to the end
@pytest.mark.parametrize("page", [page for page in PAGES if can_be_run(page)], ids=name)
def test_a_page_runs(
    page: Path,
    tiny_checkpoint: TinyBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    isolate(monkeypatch, tmp_path)

    PageRunner(tmp_path, tiny_checkpoint, monkeypatch).run(page)
