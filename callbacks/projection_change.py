"""Measures during training what the projection changes: neighbourhoods, and what patches keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import lightning as L

from lightning_mllm import progress
from lightning_mllm.callbacks.change_table import draw_change_table
from lightning_mllm.callbacks.feature_callback import FeatureCallback
from lightning_mllm.callbacks.trainer_state import (
    trainer_epoch,
    trainer_evaluation_dir,
    trainer_figure,
    trainer_mllm,
    trainer_run_dir,
    trainer_writes_results,
)
from lightning_mllm.callbacks.watched_split import check_watched_features, watched_samples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import FeatureCache
from lightning_mllm.probing.change.measures import (
    BEFORE,
    BEHIND,
    CHANGE_COLUMNS,
    LINK_COLUMNS,
    OVERLAP,
    ProjectionChanges,
    measure_change,
)
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.steps import StepNumber, draw_step_curves
from lightning_mllm.tracking.loggers import log_image, log_metrics

_WHEN = ("epoch", "step", "stage")
_MOST_PATCHES = 40_000  # that are kept of a split, drawn evenly from its pictures


class ProjectionChange(FeatureCallback):
    """Measures which neighbourhoods the projection changes, and which patches can be read back.

    It looks at the pictures of the validation split before training and at validations of a fit,
    and at those of the test split after a test. The share of a picture's nearest neighbours before
    the projection that are its neighbours behind it says how far the neighbourhood changed, not
    that anything is lost. A ridge regression from projected patch to original patch says how much
    of the patches is not linearly recoverable; where samples have boxes, also by what they show.

    In the run's folder, `projection_change.csv` has each number with its interval over pictures,
    chance and N, `projection_change_and_answers.csv` how it goes with right answers (a permutation
    test), and `projection_change.png` shows the curves. The folder of a test's evaluation gets
    `projection-change.csv`, with the numbers of each picture. Labels are not needed. Beside
    `ProbeEachEpoch` with the same cache, one pass serves both.

    Args:
        neighbours: Numbers of nearest neighbours that are compared.
        reconstruction: Whether patches are read back. It needs a projection that turns one patch
            into one token, as LLaVA's does.
        every_n_epochs: Number of epochs between measurements; the last validation of a fit is
            always measured.
        before_training: Whether the untrained model is measured too.
        cache: Stores the features of a frozen vision tower.
    """

    def __init__(
        self,
        *,
        neighbours: Sequence[int] = (10,),
        reconstruction: bool = True,
        every_n_epochs: int = 1,
        before_training: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__(
            (BEFORE, BEHIND),
            every_n_epochs=every_n_epochs,
            before_training=before_training,
            cache=cache,
        )
        self.neighbours, self.reconstruction = tuple(neighbours), reconstruction
        if len(set(self.neighbours)) < len(self.neighbours) or min(self.neighbours, default=1) < 1:
            raise ConfigError(
                f"ProjectionChange.neighbours are {list(self.neighbours)}; give numbers from 1 on, "
                "each once."
            )
        if not self.neighbours and not reconstruction:
            raise ConfigError(
                "ProjectionChange has no neighbours and no reconstruction, so that it measures "
                "nothing. Give one of them, or leave it out."
            )
        self._rows: list[dict[str, Any]] = []
        self._links: list[dict[str, Any]] = []

    def splits_used(self, split: Split) -> tuple[Split, ...]:
        """Return the split alone: nothing is learnt from training samples."""
        return (split,)

    def patches_used(self, trainer: L.Trainer, split: Split) -> int:
        """Return how many patches of each picture are kept."""
        samples = len(watched_samples(trainer, split))
        return max(1, _MOST_PATCHES // samples) if self.reconstruction else 0

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a projection whose patches can't be read back."""
        patches = int(self.reconstruction)
        check_watched_features(trainer, pl_module, self.points, self.cache, patches=patches)

    def use_features(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        """Measure the pictures of a split."""
        found = self.extract(trainer, pl_module, split)
        right = self.answered[split].gather(trainer_mllm(pl_module).trained_steps)
        if not trainer_writes_results(trainer):
            return
        module = trainer_mllm(pl_module)
        samples = watched_samples(trainer, split)
        pictures = {sample.id: sample.picture or sample.id for sample in samples}
        changes = measure_change(found, pictures, self.neighbours)
        shares = {scorer: _share_right(own, pictures) for scorer, own in right.items()}
        when = {
            "epoch": trainer_epoch(trainer, module),
            "step": module.trained_steps,
            "stage": module.stage_name if split == "test" else "val",
        }
        rows = [{**when, **row} for row in changes.rows()]
        self._rows += rows
        self._links += [{**when, **row} for row in changes.link(shares)]
        self._write(trainer, module, rows)
        if split == "test":
            _write_pictures(trainer, module, changes, shares)

    def print_table(self) -> None:
        """Print what the projection changes before the training and at its end."""
        if self._rows:
            progress.console.print(draw_change_table(self._rows))

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, so that a resumed run has them too."""
        return {"rows": self._rows, "links": self._links}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the resumed run; keep the own rows when testing a checkpoint."""
        if not self._rows:
            self._rows, self._links = list(state_dict["rows"]), list(state_dict["links"])

    def _write(
        self, trainer: L.Trainer, module: MLLMModule, new: Iterable[Mapping[str, Any]]
    ) -> None:
        folder, step = trainer_run_dir(trainer), module.trained_steps
        tables = {
            "projection_change": ([*_WHEN, *CHANGE_COLUMNS], self._rows),
            "projection_change_and_answers": ([*_WHEN, *LINK_COLUMNS], self._links),
        }
        for name, (columns, rows) in tables.items():
            if rows:
                write_csv_file(folder / f"{name}.csv", columns, map(itemgetter(*columns), rows))
        logged = {}
        for row in new:
            logged[f"change/{row['stage']}/{row['measure']}/{row['of']}"] = row["value"]
        log_metrics(trainer.loggers, logged, step)
        picture = draw_change_curves(
            self._rows, trainer_figure(trainer, folder, "projection_change")
        )
        log_image(trainer.loggers, "projection_change", picture, step)


def draw_change_curves(rows: Sequence[Mapping[str, Any]], output: Any) -> Any:
    """Draw the rows of `projection_change.csv` over the steps, and return the picture's path."""
    panels: dict[str, dict[str, list[StepNumber]]] = {}
    chance: dict[str, float] = {}
    for row in rows:
        ends = row["low_95"], row["high_95"]
        number = StepNumber(row["step"], row["value"], *ends, of_test=row["stage"] != "val")
        split = "validation" if row["stage"] == "val" else "test"
        if row["measure"] == OVERLAP:
            panel = f"Overlap of the {row['of']} nearest neighbours (chance {row['chance']:.3f})"
            line = f"{split} (N {row['n']})"
            chance[panel] = row["chance"]
        else:
            panel = "Variance of patches that a ridge regression leaves unexplained"
            line = f"{row['of']} patches, {split}"
        panels.setdefault(panel, {}).setdefault(line, []).append(number)
    return draw_step_curves(
        panels,
        output,
        title="What the projection changes; bands: 95 % intervals over pictures",
        ylabel="Share (0-1)",
        chance=chance,
    )


def _share_right(right: Mapping[str, bool], pictures: Mapping[str, str]) -> dict[str, float]:
    """Return picture -> share of the questions about it that are answered rightly."""
    found: dict[str, list[bool]] = {}
    for sample_id, is_right in right.items():
        if sample_id in pictures:
            found.setdefault(pictures[sample_id], []).append(is_right)
    return {picture: sum(own) / len(own) for picture, own in found.items()}


def _write_pictures(
    trainer: L.Trainer,
    module: MLLMModule,
    changes: ProjectionChanges,
    right: Mapping[str, Mapping[str, float]],
) -> None:
    """Write the numbers of each picture beside the share of its right answers."""
    columns: dict[str, Sequence[Any]] = {"picture": changes.pictures}
    for each in changes.measures:
        columns[each.name] = each.by_picture.tolist()
    for scorer, shares in right.items():
        columns[f"{scorer}/right"] = [shares.get(picture) for picture in changes.pictures]
    path = trainer_evaluation_dir(trainer, module) / "projection-change.csv"
    write_csv_file(path, list(columns), zip(*columns.values(), strict=True))
