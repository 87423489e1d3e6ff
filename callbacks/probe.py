"""Measures during training what probes can read from the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import lightning as L

from lightning_mllm import progress
from lightning_mllm.callbacks.feature_callback import FeatureCallback
from lightning_mllm.callbacks.probe_answers import CELL_COLUMNS, CELLS, share_probe_cells
from lightning_mllm.callbacks.probe_files import (
    Scores,
    find_logged_scores,
    list_number_columns,
    list_seed_rows,
    name_probe,
    write_probed_numbers,
    write_probed_test,
)
from lightning_mllm.callbacks.probe_table import draw_number_table, draw_probe_table
from lightning_mllm.callbacks.probe_targets import ProbeSplit, ProbeTargets
from lightning_mllm.callbacks.trainer_state import (
    trainer_class_names,
    trainer_epoch,
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
from lightning_mllm.probing.probes.numbers import NumberScore, probe_numbers
from lightning_mllm.probing.targets import LABEL
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.run import draw_probe_curve_of_run
from lightning_mllm.tracking.loggers import log_image, log_metrics

_WHEN = ("epoch", "step", "stage")
COLUMNS = (
    *(*_WHEN, "point", "probe", "seed"),
    *("accuracy", "macro_f1", "control_accuracy"),
    *("n_train", "n_test", "epochs_trained", "best_epoch", "converged", "target"),
)
ANSWER_COLUMNS = (*_WHEN, "target", "point", "probe", "scorer", "n", "seeds", *CELL_COLUMNS)
NUMBER_COLUMNS = (
    *(*_WHEN, "target", "point", "r2", "low_95", "high_95"),
    *("rmse", "sd", "penalty", "n_train", "n_test"),
)


class ProbeEachEpoch(FeatureCallback):
    """Trains new probes on the features of the training split, and scores them.

    Before training (epoch -1) and at validations of a fit, the probes are scored on the validation
    split, and after a test on the test split, which therefore decides nothing. Validation and test
    samples are those that the model itself is evaluated on; training samples are always all.

    In the run's folder, `probes.csv` has a row per score and seed, and `probes.png` shows the
    curves. `probes_and_answers.csv` has the shares of the samples that both probe and model get
    right, the probe alone, the model alone, and neither; before training there are such only if the
    model was validated first (`test_before`). `number_probes.csv` has R^2 of `numbers`. The folder
    of a test's evaluation gets `probes.json`, with the scores per class, and
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
        targets: What the probes tell, each by probes of its own: the label, or fields of the
            samples that are classes. Empty where only numbers are read.
        numbers: Fields of the samples that are numbers; each is read by a ridge regression.
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
        targets: Sequence[str] = (LABEL,),
        numbers: Sequence[str] = (),
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
        self.targets, self.numbers = tuple(targets), tuple(numbers)
        _check_each_once("points", [point.name for point in self.points])
        _check_each_once(
            "probes",
            [probe.name for probe in self.probes],
            " Give two probes of one kind different labels.",
        )
        _check_each_once("seeds", [str(seed) for seed in self.seeds])
        _check_each_once("targets or numbers", [*self.targets, *self.numbers])
        for name in (*self.targets, *self.numbers):
            if "/" in name:
                raise ConfigError(
                    f"ProbeEachEpoch can't read {name!r}: rename it, without a slash."
                )
        if halves < 0:
            raise ConfigError(f"ProbeEachEpoch.halves must be at least 0, not {halves}.")
        self._fields = ProbeTargets()
        self._rows: list[dict[str, Any]] = []
        self._answer_rows: list[dict[str, Any]] = []
        self._number_rows: list[dict[str, Any]] = []

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse data without labels if they are to be read, and points that are not there."""
        if LABEL in self.targets:
            why = "ProbeEachEpoch reads the label, unless `targets` or `numbers` name other fields"
            trainer_class_names(trainer, why)
        super().check(trainer, pl_module)

    def use_features(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        """Train probes on the training split, and score them on another one."""
        train = ProbeSplit("train", self.extract(trainer, pl_module, "train"))
        held_out = ProbeSplit(split, self.extract(trainer, pl_module, split))
        if trainer_is_trial(trainer):
            return  # too few batches to train a probe
        scores: dict[tuple[str, str, str], ProbeScore] = {}
        halves = self.halves if split == "test" else 0
        for target in self.targets:
            sets = self._fields.label(trainer, target, train, held_out)
            for probe in progress.track(self.probes, f"Probes of {target}"):
                for point, score in probe.fit_score(*sets, self.seeds, halves).items():
                    scores[target, point, probe.name] = score
        numbers: dict[tuple[str, str], NumberScore] = {}
        truth = {}
        for target in self.numbers:
            both = [self._fields.number(trainer, target, each) for each in (train, held_out)]
            truth[target] = both[1].numbers.tolist()
            for point, found in probe_numbers(*both).items():
                numbers[target, point] = found
        right = self.answered[split].gather(trainer_mllm(pl_module).trained_steps)
        if trainer.is_global_zero:
            module = trainer_mllm(pl_module)
            when = {
                "epoch": trainer_epoch(trainer, module),
                "step": module.trained_steps,
                "stage": module.stage_name if split == "test" else "val",
            }
            logged = self._keep(when, scores)
            logged |= self._keep_numbers(when, numbers)
            logged |= self._keep_cells(when, scores, right, self._fields.pictures(trainer, split))
            self._write(trainer, module, logged)
            if split == "test" and scores:
                write_probed_test(trainer, module, scores)
            if split == "test" and numbers:
                write_probed_numbers(trainer, module, numbers, held_out.found.sample_ids, truth)

    def print_table(self) -> None:
        """Print what the probes read before the training and at its end."""
        if self._rows:
            progress.console.print(draw_probe_table(self._rows))
        if self._number_rows:
            progress.console.print(draw_number_table(self._number_rows))

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, so that a resumed run has them too."""
        return {"rows": self._rows, "answers": self._answer_rows, "numbers": self._number_rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the resumed run; keep the own rows when testing a checkpoint."""
        if not self._rows and not self._number_rows:
            self._rows = [{"target": LABEL, **row} for row in state_dict["rows"]]
            self._answer_rows = list(state_dict.get("answers", ()))
            self._number_rows = list(state_dict.get("numbers", ()))

    def _keep(self, when: dict[str, Any], scores: Scores) -> dict[str, float]:
        """Keep the rows of probes of classes, and return what is logged of them."""
        for (target, point, probe), score in scores.items():
            for row in list_seed_rows(score):
                where = {"point": point, "probe": probe, "target": target}
                self._rows.append({**when, **where, **row})
        return find_logged_scores(when["stage"], scores)

    def _keep_numbers(
        self, when: dict[str, Any], scores: dict[tuple[str, str], NumberScore]
    ) -> dict[str, float]:
        """Keep the rows of probes of numbers, and return what is logged of them."""
        logged = {}
        for (target, point), score in scores.items():
            where = {"target": target, "point": point}
            self._number_rows.append({**when, **where, **list_number_columns(score)})
            logged[f"probe/{when['stage']}/{name_probe(target, point, 'ridge')}/r2"] = score.r2
        return logged

    def _keep_cells(
        self,
        when: dict[str, Any],
        scores: Scores,
        right: dict[str, dict[str, bool]],
        pictures: Mapping[str, str],
    ) -> dict[str, float]:
        """Keep the rows of probes beside answers, and return what is logged of them."""
        logged: dict[str, float] = {}
        for (target, point, probe), score in scores.items():
            for scorer, answers in right.items():
                cells = share_probe_cells(score, answers, pictures)
                if cells:
                    where = {"target": target, "point": point, "probe": probe, "scorer": scorer}
                    self._answer_rows.append({**when, **where, **cells})
                    name = f"probe/{when['stage']}/{name_probe(target, point, probe)}/{scorer}"
                    logged |= {f"{name}/{cell}": cells[cell] for cell in CELLS}
        return logged

    def _write(self, trainer: L.Trainer, module: MLLMModule, logged: dict[str, float]) -> None:
        folder = trainer_run_dir(trainer)
        tables = {
            "probes": (COLUMNS, self._rows),
            "probes_and_answers": (ANSWER_COLUMNS, self._answer_rows),
            "number_probes": (NUMBER_COLUMNS, self._number_rows),
        }
        for name, (columns, rows) in tables.items():
            if rows:
                write_csv_file(folder / f"{name}.csv", columns, map(itemgetter(*columns), rows))
        log_metrics(trainer.loggers, logged, module.trained_steps)
        if self._rows:
            labels = trainer_label_set(trainer) if self.targets == (LABEL,) else None
            picture = draw_probe_curve_of_run(
                self._rows,
                trainer_figure(trainer, folder, "probes"),
                classes=None if labels is None else len(labels),
            )
            log_image(trainer.loggers, "probes", picture, module.trained_steps)


def _check_each_once(option: str, names: Sequence[str], way_out: str = "") -> None:
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise ConfigError(f"ProbeEachEpoch needs {option}, each once; found {found}.{way_out}")
