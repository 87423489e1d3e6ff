"""The cells of the alignment study: which there are, their names, and their command lines."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.study.alignment.study import ALIGNMENT, AlignmentStudy
from lightning_mllm.study.engine.base import BaseCell, TimeKeys
from lightning_mllm.study.engine.cell_folder import CellFolder


@dataclass(frozen=True, kw_only=True)
class AlignmentCell(BaseCell):
    """One measurement of one checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint.
        measure: `task.<name>`, `presence`, `captions` or `alignment`.
        training: The training checkpoint, if it is one.
    """

    checkpoint: str
    measure: str
    training: str = ""

    @property
    def id(self) -> str:
        """Name of the cell and of its folder."""
        return f"{self.checkpoint}.{self.measure}"

    @property
    def time_keys(self) -> TimeKeys:
        """The measure, of the same model; the measure alone."""
        return (self.source, self.measure), (self.measure,)

    @property
    def order(self) -> tuple[str | int, ...]:
        """The key by which cells are sorted before they are dealt to machines."""
        return self.measure, self.checkpoint

    @property
    def weights(self) -> tuple[str, ...]:
        """Where its weights come from."""
        return (self.source, self.training) if self.training else (self.source,)

    @property
    def analyzes(self) -> bool:
        """Whether it is a `lightning analyze`."""
        return self.measure == ALIGNMENT

    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results."""
        command = "analyze" if self.analyzes else "test"
        arguments = [command, *self.config_arguments(), "--model.checkpoint", self.source]
        if self.training:
            arguments += ["--ckpt_path", self.training]
        return arguments


MeasureFolder = CellFolder[AlignmentCell]


def alignment_cells(study: AlignmentStudy) -> list[AlignmentCell]:
    """Return all cells, checkpoint by checkpoint: a study that is stopped early has some whole.

    Raises:
        ConfigError: A training has no checkpoints.
    """
    cells = []
    for weights in study.weights():
        for measure, files in study.measures().items():
            cell = AlignmentCell(
                checkpoint=weights.name,
                measure=measure,
                training=weights.training,
                source=weights.checkpoint.source,
                configs=(*study.common, *weights.checkpoint.configs, *files),
            )
            cells.append(cell)
    return cells
