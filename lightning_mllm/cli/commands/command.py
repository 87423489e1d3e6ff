"""A sub-command of `lightning`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        name: What users type: a name, or a group and a name in it.
        module: Module of this package whose function `run` executes the command.
        help: What the command does, in one sentence for `lightning --help`.
    """

    name: str
    module: str
    help: str

    def run(self, arguments: list[str]) -> None:
        """Execute the command with the arguments that follow its name."""
        import_module(f"{__package__}.{self.module}").run(self.name, arguments)
