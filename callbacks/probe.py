"""Follows what can be read from the features while the model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from lightning_mllm.callbacks import access
from lightning_mllm.errors import ConfigError
from lightning_mllm.probing import FeatureCache, MLPProbe, Point, Probe, ProbeScore
from lightning_mllm.tracking.figures import probe_curve
from lightning_mllm.tracking.files import write_rows
from lightning_mllm.tracking.log import log_image, log_metrics

COLUMNS = (
    *("epoch", "step", "stage", "point", "probe", "seed", "accuracy", "macro_f1", "control_accuracy"),
    *("n_train", "n_test", "epochs_trained"),
)


class ProbeEachEpoch(L.Callback):
    """Trains probes on the features of the training split, anew each time, and scores them.

    Before training (epoch -1) and at each validation of a fit they are scored on the validation split, after a test on
    the test split, which so decides nothing. In the run's folder, `probes.csv` has a row per score and seed and
    `probes.png` the curves; the folder of a test's evaluation gets every prediction, `probe-predictions.csv`.

    Args:
        points: Where features are tapped; by default before and after the projection, averaged over the tokens.
        probes: What is trained on them; by default the paper's `MLPProbe`.
        seeds: Each probe is trained once per seed; all seeds and points at once.
        every_n_epochs: Epochs between probings.
        before_training: Whether the untrained model is probed too.
        cache: Keeps what a frozen vision tower makes of the images.
    """

    def __init__(
        self,
        *,
        points: Sequence[Point] | None = None,
        probes: Sequence[Probe] | None = None,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        every_n_epochs: int = 1,
        before_training: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        self.points = (Point("pre"), Point("post")) if points is None else tuple(points)
        self.probes = (MLPProbe(),) if probes is None else tuple(probes)
        for option, chosen in {"points": self.points, "probes": self.probes}.items():
            names = [each.name for each in chosen]
            if not names or len(set(names)) < len(names):
                raise ConfigError(f"ProbeEachEpoch needs {option}, each once; found {', '.join(names) or 'none'}.")
        if every_n_epochs < 1:
            raise ConfigError(f"ProbeEachEpoch.every_n_epochs must be at least 1, not {every_n_epochs}.")
        self.seeds, self.cache = tuple(seeds), cache
        self.every_n_epochs, self.before_training = every_n_epochs, before_training
        self._rows: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the untrained model."""
        if self.before_training and not access.mllm(pl_module).trained_steps:
            self._probe(trainer, pl_module, "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the model as it is."""
        if access.is_fitting(trainer) and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._probe(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the model on the test split."""
        self._probe(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far, so that a resumed run has them too."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores of the run that is resumed."""
        self._rows = list(state_dict["rows"])

    def _probe(self, trainer: L.Trainer, pl_module: L.LightningModule, split: access.Split) -> None:
        train, held_out = (
            access.features(trainer, pl_module, each, self.points, self.cache) for each in ("train", split)
        )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a single batch teaches no probe
        module = access.mllm(pl_module)
        scores = {probe.name: probe.fit_score(train, held_out, self.seeds) for probe in self.probes}
        if not trainer.is_global_zero:
            return
        stage = module.stage_name if split == "test" else "val"
        when = {"epoch": access.epoch_of(trainer, module), "step": module.trained_steps, "stage": stage}
        self._rows += [
            {**when, "point": point, "probe": probe, **row}
            for probe, by_point in scores.items()
            for point, score in by_point.items()
            for row in _per_seed(score)
        ]
        folder = access.run_dir(trainer)
        write_rows(folder / "probes.csv", COLUMNS, [[row[column] for column in COLUMNS] for row in self._rows])
        log_metrics(trainer.loggers, _logged(stage, scores), trainer.global_step)
        picture = probe_curve(self._rows, folder / "probes.png")
        log_image(trainer.loggers, "probes", picture, trainer.global_step)
        if split == "test":
            path = access.evaluation_dir(trainer, module) / "probe-predictions.csv"
            write_rows(path, *_predictions(scores))


def _per_seed(score: ProbeScore) -> list[dict[str, Any]]:
    """Return the columns that differ by seed, and N."""
    controls = [control.accuracy for control in score.controls] or [None] * len(score.seeds)
    return [
        {
            "seed": seed,
            "accuracy": result.accuracy,
            "macro_f1": result.macro_f1,
            "control_accuracy": control,
            "n_train": score.n_train,
            "n_test": score.n_test,
            "epochs_trained": epochs,
        }
        for seed, result, control, epochs in zip(score.seeds, score.results, controls, score.epochs, strict=True)
    ]


def _logged(stage: str, scores: Mapping[str, Mapping[str, ProbeScore]]) -> dict[str, float]:
    return {
        f"probe/{stage}/{point}/{probe}/{measure}": value
        for probe, by_point in scores.items()
        for point, score in by_point.items()
        for measure in ("accuracy", "macro_f1", "selectivity")
        if (value := getattr(score, measure)) is not None
    }


def _predictions(scores: Mapping[str, Mapping[str, ProbeScore]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row per sample: its id, its class, and what each probe said."""
    by_name = {f"{point}/{probe}": score for probe, by_point in scores.items() for point, score in by_point.items()}
    first = next(iter(by_name.values()))
    names = first.results[0].names
    columns = ["sample_id", "target"]
    cells = [list(first.sample_ids), [names[target] for target in first.targets.tolist()]]
    for name, score in by_name.items():
        for seed, predicted in zip(score.seeds, score.predictions.tolist(), strict=True):
            columns.append(f"{name}/seed{seed}")
            cells.append([names[index] for index in predicted])
    return columns, [list(row) for row in zip(*cells, strict=True)]
