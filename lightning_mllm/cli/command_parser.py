"""Finds the command that a command line names; answers `--help` and typos without heavy imports."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning_mllm import __version__
from lightning_mllm.cli.commands import COMMANDS, PROGRAM, SECTIONS
from lightning_mllm.cli.commands.command import Command
from lightning_mllm.errors import did_you_mean

_BEFORE_THE_COMMAND = ("-c", "--config", "--print_config")  # options that Lightning takes there


def parse_command(arguments: Sequence[str]) -> tuple[Command, list[str]]:
    """Return the command that a command line names, and what follows the name.

    Exits if the command line asks for help, or names no command.
    """
    if arguments and arguments[0].partition("=")[0] in _BEFORE_THE_COMMAND:
        return SECTIONS, list(arguments)
    found = _command_line().parse_args(arguments)
    return found.command, found.arguments


class _CommandParser(argparse.ArgumentParser):
    """Parser of a group of commands, or of one command, whose options its own module parses."""

    def __init__(self, *, command: Command | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False, add_help=command is None)
        self._command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse up to the name of the command."""
        if self._command is None:
            return super().parse_known_args(args, namespace)
        return argparse.Namespace(command=self._command, arguments=list(args)), []

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and a message that names the nearest command, and all commands."""
        names = [command.name for command in COMMANDS]
        if match := re.search(r"invalid choice: '(.+?)'", message):
            wrong = f"{self.prog} {match[1]}".removeprefix(f"{PROGRAM} ")
            message = f"There is no command {wrong!r}." + did_you_mean(wrong, names)
        commands = ", ".join(names)
        sys.stderr.write(f"error: {message}\nCommands: {commands}\nHelp: {PROGRAM} --help\n")
        sys.exit(2)


class _Version(argparse.Action):
    """Prints the versions of the program and of what it stands on, none of which is imported."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  # slow

        found = []
        for name in ("lightning", "torch", "transformers"):
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                found.append(f"{name} missing")
        sys.stdout.write(f"lightning-mllm {__version__} ({', '.join(found)})\n")
        parser.exit()


def _command_line() -> _CommandParser:
    parser = _parser_of_a_group("")
    parser.add_argument("--version", action=_Version, help="show the versions and exit")
    groups = {"": _subparsers(parser)}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            groups[group] = _subparsers(_parser_of_a_group(group, of=groups[""]))
        groups[group].add_parser(name, command=command)
    return parser


def _parser_of_a_group(group: str, of: Any = None) -> _CommandParser:
    """Return a parser whose help lists the commands of a group; "" is the group of all."""
    rows = [f"  {each.name:<16}{each.help}" for each in COMMANDS if each.name.startswith(group)]
    prog = f"{PROGRAM} {group}".rstrip()
    options: dict[str, Any] = {
        "prog": prog,
        "usage": f"{prog} COMMAND ...",
        "description": "Fine-tune, watch and dissect multimodal LLMs." if not group else None,
        "epilog": "\n".join(
            ["commands:", *rows, "", f"Options of a command: {prog} COMMAND --help"]
        ),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    parser: _CommandParser = (
        _CommandParser(**options) if of is None else of.add_parser(group, **options)
    )
    return parser


def _subparsers(parser: _CommandParser) -> Any:
    return parser.add_subparsers(metavar="COMMAND", required=True, help=argparse.SUPPRESS)
