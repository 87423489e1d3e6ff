"""What a freeze policy made trainable, as data: counts per part, names, and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from lightning_mllm.models.backbone import Part


@dataclass(frozen=True)
class FreezeReport:
    """What a policy made trainable, as data.

    Attributes:
        policy: The policy, as it would be written in Python.
        parameters: Part -> number of parameters.
        trainable: Part -> how many of them are trained.
        trainable_names: Names of the trained parameters, as in `model.named_parameters()`.
        idle: Number of parameters of the vision tower that have no part in what the projector
            reads, e.g. layers after it. They stay frozen under every policy because no gradient
            reaches them.
    """

    policy: str
    parameters: dict[Part, int]
    trainable: dict[Part, int]
    trainable_names: tuple[str, ...]
    idle: int

    @property
    def trainable_parts(self) -> frozenset[Part]:
        """Parts of which at least one parameter is trained."""
        return frozenset(part for part, count in self.trainable.items() if count)

    def rows(self) -> list[tuple[str, int, int, float]]:
        """Return (part, parameters, trainable, trainable in %) per part, and then for the total."""
        counts: list[tuple[str, int, int]] = []
        for part in Part:
            if self.parameters[part]:
                counts.append((part.value, self.parameters[part], self.trainable[part]))
        counts.append(("total", sum(self.parameters.values()), sum(self.trainable.values())))
        return [(name, total, trained, 100 * trained / total) for name, total, trained in counts]

    def __rich__(self) -> Group:
        table = Table("part")
        for column in ("parameters", "trainable", "%"):
            table.add_column(column, justify="right")
        for name, count, trained, percent in self.rows():
            if name == "total":
                table.add_section()
            table.add_row(name, f"{count:,}", f"{trained:,}", f"{percent:.2f}")
        note = (
            f"{self.idle:,} vision parameters have no part in what is projected: no gradient "
            "reaches them.\n"
        )
        return Group(f"What {self.policy} trains", table, note if self.idle else "")

    def as_dict(self) -> dict[str, Any]:
        """Return plain types for a logger's config."""
        return {
            "policy": self.policy,
            "parameters": {part.value: count for part, count in self.parameters.items()},
            "trainable": {part.value: count for part, count in self.trainable.items()},
        }
