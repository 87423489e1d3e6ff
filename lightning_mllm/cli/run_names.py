"""What a run is called that evaluates another one: `leaves-test` for a test of `leaves`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.cli.given import CONFIG_OPTIONS


def name_after_run(command: str, arguments: Sequence[str]) -> list[str]:
    """Return arguments that name the new run after the one whose `config.yaml` they give.

    A name that is given after that config goes before.

    Args:
        command: What is done, e.g. `test`.
        arguments: What follows the command.
    """
    named: list[str] = []
    config_follows = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        named.append(argument)
        file = ""
        if config_follows:
            file = argument
        elif option in CONFIG_OPTIONS and equals:
            file = value
        config_follows = argument in CONFIG_OPTIONS
        if run := _run_of_config(file):
            name = run if run.endswith(f"-{command}") else f"{run}-{command}"
            named.append(f"--trainer.run.name={name}")
    return named


def _run_of_config(file: str) -> str:
    """Return the name of the run whose saved config a file is; nothing for another file."""
    path = Path(file)
    is_saved = path.name == "config.yaml" and path.with_name("status.json").is_file()
    return path.resolve().parent.name if is_saved else ""
