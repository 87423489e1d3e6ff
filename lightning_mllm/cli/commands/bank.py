"""`lightning bank`: text states of a model, for `PatchWords`."""

from __future__ import annotations

from pathlib import Path

from lightning_mllm.analysis import Bank
from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.progress import console


def run(name: str, arguments: list[str]) -> None:
    """Build a bank, and say what is in it."""
    BankCLI([name, *arguments])


class BankCLI(ModelCLI):
    """The command line of the other model commands, which ends with what was built."""

    def after_bank(self) -> None:
        """Say how large the bank is, and how it is used."""
        folder = Path(self.config[self.subcommand]["output"])
        bank = Bank(folder)
        layers = ", ".join(map(str, bank.layers))
        console.print(
            f"{folder} is a bank of {len(bank)} states of {bank.making['tokens']} tokens, from "
            f"{bank.making['texts']} texts, in front of layers {layers}. To read patches with it:\n"
            f"  {PROGRAM} analyze ... --analysis PatchWords --analysis.bank {folder}",
            markup=False,
            soft_wrap=True,
        )
