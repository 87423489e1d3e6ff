"""Follows what can be read from the features while the model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from lightning_mllm.callbacks import features, trainer_state
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import FeatureCache, MLPProbe, Point, Probe, ProbeScore
from lightning_mllm.store.files import write_json, write_rows
from lightning_mllm.tracking.figures.run import probe_curve
from lightning_mllm.tracking.loggers import log_image, log_metrics

COLUMNS = (
    *("epoch", "step", "stage", "point", "probe", "seed", "accuracy", "macro_f1", "control_accuracy"),
    *("n_train", "n_test", "epochs_trained", "best_epoch", "converged"),
)
_LOGGED = ("accuracy", "accuracy_sd", "macro_f1", "macro_f1_sd", "selectivity")

Scores = Mapping[tuple[str, str], ProbeScore]  # by the names of point and probe


class ProbeEachEpoch(L.Callback):
    """Trains probes on the features of the training split, anew each time, and scores them.

    Before training (epoch -1) and at validations of a fit they are scored on the validation split, after a test on the
    test split, which so decides nothing. Validation and test samples are those that the model itself is evaluated on,
    training samples always all (`features.tapped_samples`).

    In the run's folder, `probes.csv` has a row per score and seed and `probes.png` the curves; the folder of a test's
    evaluation gets `probes.json`, with the scores per class, and every prediction, `probe-predictions.csv`.

    With several processes each of them trains all the probes. All have the features of all samples, and what is random
    has a seed, so that they get the same scores; and none waits in a collective, until that runs out of time, for a
    first process that trains alone. The first one writes.

    Args:
        points: Where features are tapped; by default before and after the projection, averaged over the tokens.
        probes: What is trained on them; by default the paper's `MLPProbe`.
        seeds: Each probe is trained once per seed; all seeds and points at once.
        halves: Of the training samples, on each of which each probe is trained once more when it is tested: their
            predictions tell how much a score owes to which training samples there are (`Probe.fit_score`). A study
            takes them for its intervals; 20 are enough.
        every_n_epochs: Epochs between probings; the last validation of a fit is always one.
        before_training: Whether the untrained model is probed too.
        cache: Keeps what a frozen vision tower makes of the images.
    """

    def __init__(
        self,
        *,
        points: Point | Sequence[Point] | None = None,
        probes: Probe | Sequence[Probe] | None = None,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        halves: int = 0,
        every_n_epochs: int = 1,
        before_training: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        points = (Point("pre"), Point("post")) if points is None else points
        self.points = (points,) if isinstance(points, Point) else tuple(points)
        probes = MLPProbe() if probes is None else probes
        self.probes = (probes,) if isinstance(probes, Probe) else tuple(probes)
        self.seeds, self.halves, self.cache = tuple(seeds), halves, cache
        _check_each_once("points", [point.name for point in self.points])
        _check_each_once("probes", [probe.name for probe in self.probes], " A probe's label is a name of your own.")
        _check_each_once("seeds", [str(seed) for seed in self.seeds])
        if every_n_epochs < 1 or halves < 0:
            raise ConfigError(
                f"ProbeEachEpoch.every_n_epochs must be at least 1, not {every_n_epochs}, and halves 0 or more, "
                f"not {halves}."
            )
        self.every_n_epochs, self.before_training = every_n_epochs, before_training
        self._rows: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options, and probe the untrained model."""
        features.check_features(trainer, pl_module, self.points, self.cache)
        if self.before_training and trainer_state.starts_untrained(trainer, trainer_state.mllm(pl_module)):
            self._probe(trainer, pl_module, "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the model as it is."""
        if trainer_state.is_due(trainer, self.every_n_epochs):
            self._probe(trainer, pl_module, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options."""
        features.check_features(trainer, pl_module, self.points, self.cache)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Probe the model on the test split."""
        self._probe(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far, so that a resumed run has them too."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores of the run that is resumed, unless this is a test, with a checkpoint, of what was fitted."""
        self._rows = self._rows or list(state_dict["rows"])

    def _probe(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        train, held_out = (
            features.features(trainer, pl_module, each, self.points, self.cache) for each in ("train", split)
        )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # so few batches teach no probe
        halves = self.halves if split == "test" else 0
        scores = {
            (point, probe.name): score
            for probe in self.probes
            for point, score in probe.fit_score(train, held_out, self.seeds, halves).items()
        }
        if trainer.is_global_zero:
            self._write(trainer, trainer_state.mllm(pl_module), scores, is_test=split == "test")

    def _write(self, trainer: L.Trainer, module: MLLMModule, scores: Scores, *, is_test: bool) -> None:
        stage, step = module.stage_name if is_test else "val", module.trained_steps
        when = {"epoch": trainer_state.epoch_of(trainer, module), "step": step, "stage": stage}
        self._rows += [
            {**when, "point": point, "probe": probe, **row}
            for (point, probe), score in scores.items()
            for row in _per_seed(score)
        ]
        folder = trainer_state.run_dir(trainer)
        write_rows(folder / "probes.csv", COLUMNS, [[row[column] for column in COLUMNS] for row in self._rows])
        log_metrics(trainer.loggers, _logged(stage, scores), step)
        log_image(trainer.loggers, "probes", probe_curve(self._rows, folder / "probes.png"), step)
        if is_test:
            evaluation = trainer_state.evaluation_dir(trainer, module)
            summaries = {f"{point}/{probe}": score.summary() for (point, probe), score in scores.items()}
            write_json(evaluation / "probes.json", {"stage": stage, "step": step, "probes": summaries})
            write_rows(evaluation / "probe-predictions.csv", *_predictions(scores))


def _check_each_once(option: str, names: Sequence[str], way_out: str = "") -> None:
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise ConfigError(f"ProbeEachEpoch needs {option}, each once; found {found}.{way_out}")


def _per_seed(score: ProbeScore) -> list[dict[str, Any]]:
    """Return the columns that differ by seed, and N."""
    no_controls: list[float | None] = [None] * len(score.seeds)
    controls = [control.accuracy for control in score.controls] or no_controls
    return [
        {
            "seed": seed,
            "accuracy": result.accuracy,
            "macro_f1": result.macro_f1,
            "control_accuracy": control,
            "n_train": score.n_train,
            "n_test": score.n_test,
            "epochs_trained": epochs,
            "best_epoch": best_epoch,
            "converged": converged,
        }
        for seed, result, control, epochs, best_epoch, converged in zip(
            score.seeds, score.results, controls, score.epochs, score.best_epochs, score.converged, strict=True
        )
    ]


def _logged(stage: str, scores: Scores) -> dict[str, float]:
    return {
        f"probe/{stage}/{point}/{probe}/{measure}": value
        for (point, probe), score in scores.items()
        for measure in _LOGGED
        if (value := getattr(score, measure)) is not None
    }


def _predictions(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row per sample: its id, its class, and what each probe said."""
    first = next(iter(scores.values()))
    names = first.results[0].names
    columns = ["sample_id", "target"]
    cells = [list(first.sample_ids), [names[target] for target in first.targets.tolist()]]
    for (point, probe), score in scores.items():
        answers = {f"seed{seed}": predicted for seed, predicted in zip(score.seeds, score.predictions, strict=True)}
        answers |= {f"half{number}": predicted for number, predicted in enumerate(score.halves)}
        for name, predicted in answers.items():
            columns.append(f"{point}/{probe}/{name}")
            cells.append([names[index] for index in predicted.tolist()])
    return columns, [list(row) for row in zip(*cells, strict=True)]
