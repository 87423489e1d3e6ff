"""The command line: finds the command and runs it. What commands need is imported when they run."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from lightning_mllm.cli.command_parser import parse_command
from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.errors import UserError

_CTRL_C = 130  # exit code: 128 and the number of the signal


def main(args: list[str] | None = None) -> None:
    """Entry point of `lightning` and `lightning-mllm`.

    Args:
        args: The command line; by default that of the process.
    """
    command, arguments = parse_command(sys.argv[1:] if args is None else args)
    # so that a config can name a class of the user's: my_data.Leaves
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    _check(command.name, arguments)
    from lightning_mllm.messages import show_messages  # noqa: PLC0415  # imports rich

    try:
        with show_messages():
            command.run(arguments)
    except KeyboardInterrupt:
        _stop()
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has answered it
            _stop()
        raise
    except ValueError as error:
        sys.exit(f"error: {_user_error(error)}")


def _stop() -> NoReturn:
    """Exit as programs do that Ctrl-C ends."""
    sys.stderr.write("Stopped.\n")
    sys.exit(_CTRL_C)


def _check(name: str, arguments: list[str]) -> None:
    """Exit with status 2 and a sentence if arguments or config files show a mistake."""
    from lightning_mllm.cli.early_checks import check_early  # noqa: PLC0415  # reads YAML

    try:
        check_early(name, arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\nFor all options: {PROGRAM} {name} --help\n")
        sys.exit(2)


def _user_error(error: BaseException) -> UserError:
    """Return the user's error among the causes of an exception; jsonargparse wraps such errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    raise error
