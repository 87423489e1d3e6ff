"""Measures during training what probes can read from the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import lightning as L

from lightning_mllm import progress
from lightning_mllm.callbacks.feature_callback import FeatureCallback
from lightning_mllm.callbacks.probe_table import draw_probe_table
from lightning_mllm.callbacks.trainer_state import (
    trainer_epoch,
    trainer_evaluation_dir,
    trainer_figure,
    trainer_is_trial,
    trainer_label_set,
    trainer_mllm,
    trainer_run_dir,
)
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import FeatureCache, LinearProbe, Point, Probe, ProbeScore
from lightning_mllm.store.files import write_csv_file, write_json
from lightning_mllm.tracking.figures.run import draw_probe_curve_of_run
from lightning_mllm.tracking.loggers import log_image, log_metrics

COLUMNS = (
    *("epoch", "step", "stage", "point", "probe", "seed"),
    *("accuracy", "macro_f1", "control_accuracy"),
    *("n_train", "n_test", "epochs_trained", "best_epoch", "converged"),
)
_LOGGED = ("accuracy", "accuracy_sd", "macro_f1", "macro_f1_sd", "selectivity")

Scores = Mapping[tuple[str, str], ProbeScore]  # (name of the point, name of the probe) -> score


class ProbeEachEpoch(FeatureCallback):
    """Trains new probes on the features of the training split, and scores them.

    Before training (epoch -1) and at validations of a fit, the probes are scored on the validation
    split, and after a test on the test split, which therefore decides nothing. Validation and test
    samples are those that the model itself is evaluated on; training samples are always all.

    In the run's folder, `probes.csv` has a row per score and seed, and `probes.png` shows the
    curves. The folder of a test's evaluation gets `probes.json`, with the scores per class, and
    `probe-predictions.csv`, with every prediction.

    With several processes, each process trains all probes: each has the features of all samples
    and the same seeds, so all get the same scores. If only the first process trained, the others
    would wait for it until their collective call times out. Only the first process writes.

    Args:
        points: Where features are read; by default before and after the projection, averaged over
            the tokens.
        probes: Probes to train; by default a `LinearProbe`, which is also sound on few pictures.
        seeds: Seeds; each probe is trained once per seed, all seeds and points at once.
        halves: Number of random halves of the training samples on which each probe is trained once
            more for a test. Their predictions show how much a score depends on the choice of
            training samples (`Probe.fit_score`). Studies use them for intervals; 20 are enough.
        every_n_epochs: Number of epochs between probings; the last validation of a fit is always
            probed.
        before_training: Whether the untrained model is probed too.
        cache: Stores the features of a frozen vision tower.
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
        super().__init__(
            (Point("pre"), Point("post")) if points is None else points,
            every_n_epochs=every_n_epochs,
            before_training=before_training,
            cache=cache,
        )
        probes = LinearProbe() if probes is None else probes
        self.probes = (probes,) if isinstance(probes, Probe) else tuple(probes)
        self.seeds, self.halves = tuple(seeds), halves
        _check_each_once("points", [point.name for point in self.points])
        _check_each_once(
            "probes",
            [probe.name for probe in self.probes],
            " Give two probes of one kind different labels.",
        )
        _check_each_once("seeds", [str(seed) for seed in self.seeds])
        if halves < 0:
            raise ConfigError(f"ProbeEachEpoch.halves must be at least 0, not {halves}.")
        self._rows: list[dict[str, Any]] = []

    def use_features(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        """Train probes on the training split, and score them on another one."""
        train = self.extract(trainer, pl_module, "train")
        held_out = self.extract(trainer, pl_module, split)
        if trainer_is_trial(trainer):
            return  # too few batches to train a probe
        halves = self.halves if split == "test" else 0
        scores: dict[tuple[str, str], ProbeScore] = {}
        for probe in progress.track(self.probes, "Probes"):
            for point, score in probe.fit_score(train, held_out, self.seeds, halves).items():
                scores[point, probe.name] = score
        if trainer.is_global_zero:
            module = trainer_mllm(pl_module)
            stage = module.stage_name if split == "test" else "val"
            self._write(trainer, module, stage, scores)
            if split == "test":
                _write_test(trainer, module, scores)

    def print_table(self) -> None:
        """Print what the probes read before the training and at its end."""
        if self._rows:
            progress.console.print(draw_probe_table(self._rows))

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, so that a resumed run has them too."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the resumed run; keep the own rows when testing a checkpoint."""
        self._rows = self._rows or list(state_dict["rows"])

    def _write(self, trainer: L.Trainer, module: MLLMModule, stage: str, scores: Scores) -> None:
        epoch, step = trainer_epoch(trainer, module), module.trained_steps
        when = {"epoch": epoch, "step": step, "stage": stage}
        for (point, probe), score in scores.items():
            for row in _rows_of_seeds(score):
                self._rows.append({**when, "point": point, "probe": probe, **row})
        folder = trainer_run_dir(trainer)
        write_csv_file(folder / "probes.csv", COLUMNS, map(itemgetter(*COLUMNS), self._rows))
        log_metrics(trainer.loggers, _logged_values(stage, scores), step)
        labels = trainer_label_set(trainer)
        picture = draw_probe_curve_of_run(
            self._rows,
            trainer_figure(trainer, folder, "probes"),
            classes=None if labels is None else len(labels),
        )
        log_image(trainer.loggers, "probes", picture, step)


def _check_each_once(option: str, names: Sequence[str], way_out: str = "") -> None:
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise ConfigError(f"ProbeEachEpoch needs {option}, each once; found {found}.{way_out}")


def _rows_of_seeds(score: ProbeScore) -> list[dict[str, Any]]:
    """Return a row per seed: the columns after it, and N."""
    rows = []
    for index, seed in enumerate(score.seeds):
        result = score.results[index]
        rows.append(
            {
                "seed": seed,
                "accuracy": result.accuracy,
                "macro_f1": result.macro_f1,
                "control_accuracy": score.controls[index].accuracy if score.controls else None,
                "n_train": score.n_train,
                "n_test": score.n_test,
                "epochs_trained": score.epochs[index],
                "best_epoch": score.best_epochs[index],
                "converged": score.converged[index],
            }
        )
    return rows


def _logged_values(stage: str, scores: Scores) -> dict[str, float]:
    logged = {}
    for (point, probe), score in scores.items():
        for measure in _LOGGED:
            value = getattr(score, measure)
            if value is not None:
                logged[f"probe/{stage}/{point}/{probe}/{measure}"] = value
    return logged


def _write_test(trainer: L.Trainer, module: MLLMModule, scores: Scores) -> None:
    """Write what only a test has: the scores per class, and every prediction."""
    folder = trainer_evaluation_dir(trainer, module)
    summaries = {f"{point}/{probe}": score.summary() for (point, probe), score in scores.items()}
    content = {"stage": module.stage_name, "step": module.trained_steps, "probes": summaries}
    write_json(folder / "probes.json", content)
    predictions = _predictions_by_column(scores)
    rows = zip(*predictions.values(), strict=True)
    write_csv_file(folder / "probe-predictions.csv", list(predictions), rows)


def _predictions_by_column(scores: Scores) -> dict[str, list[str]]:
    """Return the sample ids, the true classes and the predictions of each probe, by column."""
    first = next(iter(scores.values()))
    names = first.results[0].names
    columns = {
        "sample_id": list(first.sample_ids),
        "target": [names[target] for target in first.targets.tolist()],
    }
    for (point, probe), score in scores.items():
        predictions = {}
        for seed, predicted in zip(score.seeds, score.predictions, strict=True):
            predictions[f"seed{seed}"] = predicted
        for number, predicted in enumerate(score.halves):
            predictions[f"half{number}"] = predicted
        for name, predicted in predictions.items():
            columns[f"{point}/{probe}/{name}"] = [names[index] for index in predicted.tolist()]
    return columns
