"""What is written and logged of probes: rows of tables, names of metrics, files of a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from lightning_mllm.callbacks.trainer_state import trainer_evaluation_dir
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import ProbeScore
from lightning_mllm.probing.probes.numbers import NumberScore
from lightning_mllm.probing.targets import LABEL
from lightning_mllm.store.files import write_csv_file, write_json

_LOGGED = ("accuracy", "accuracy_sd", "macro_f1", "macro_f1_sd", "selectivity")

ScoreKey = tuple[str, str, str]  # what is read, name of the point, name of the probe
Scores = Mapping[ScoreKey, ProbeScore]


def name_probe(target: str, point: str, probe: str) -> str:
    """Return the name of a probe in files and metrics: `post-mean/linear`.

    Where it reads another field than the label, the field comes first.
    """
    return f"{point}/{probe}" if target == LABEL else f"{target}/{point}/{probe}"


def list_seed_rows(score: ProbeScore) -> list[dict[str, Any]]:
    """Return a row per seed: its scores, and N."""
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


def list_number_columns(score: NumberScore) -> dict[str, Any]:
    """Return the columns of one score of a number."""
    low, high = score.interval
    return {
        "r2": score.r2,
        "low_95": low,
        "high_95": high,
        "rmse": score.error,
        "sd": score.deviation,
        "penalty": score.penalty,
        "n_train": score.n_train,
        "n_test": score.n_test,
    }


def find_logged_scores(stage: str, scores: Scores) -> dict[str, float]:
    """Return the metrics of probes."""
    logged = {}
    for key, score in scores.items():
        for measure in _LOGGED:
            value = getattr(score, measure)
            if value is not None:
                logged[f"probe/{stage}/{name_probe(*key)}/{measure}"] = value
    return logged


def write_probed_test(trainer: L.Trainer, module: MLLMModule, scores: Scores) -> None:
    """Write what only a test has: the scores per class, and every prediction."""
    folder = trainer_evaluation_dir(trainer, module)
    summaries = {name_probe(*key): score.summary() for key, score in scores.items()}
    content = {"stage": module.stage_name, "step": module.trained_steps, "probes": summaries}
    write_json(folder / "probes.json", content)
    targets = dict.fromkeys(target for target, _, _ in scores)
    for target in targets:
        own = {key: score for key, score in scores.items() if key[0] == target}
        predictions = _predictions_by_column(own)
        rows = zip(*predictions.values(), strict=True)
        end = "" if target == LABEL else f"-{target}"
        write_csv_file(folder / f"probe-predictions{end}.csv", list(predictions), rows)


def write_probed_numbers(
    trainer: L.Trainer,
    module: MLLMModule,
    scores: Mapping[tuple[str, str], NumberScore],
    ids: Sequence[str],
    truth: Mapping[str, Sequence[float]],
) -> None:
    """Write every number that was predicted in a test.

    Args:
        trainer: The Trainer.
        module: The model that is tested.
        scores: The scores of each field and point.
        ids: Id of each test sample.
        truth: Field -> its number in each test sample.
    """
    columns: dict[str, Sequence[Any]] = {"sample_id": ids, **truth}
    for (field, point), score in scores.items():
        columns[f"{field}/{point}"] = score.predicted.tolist()
    path = trainer_evaluation_dir(trainer, module) / "number-predictions.csv"
    write_csv_file(path, list(columns), zip(*columns.values(), strict=True))


def _predictions_by_column(scores: Scores) -> dict[str, list[str]]:
    """Return the sample ids, the true classes and the predictions of each probe, by column."""
    first = next(iter(scores.values()))
    names = first.results[0].names
    columns = {
        "sample_id": list(first.sample_ids),
        "target": [names[target] for target in first.targets.tolist()],
    }
    for (_, point, probe), score in scores.items():
        predictions = {}
        for seed, predicted in zip(score.seeds, score.predictions, strict=True):
            predictions[f"seed{seed}"] = predicted
        for number, predicted in enumerate(score.halves):
            predictions[f"half{number}"] = predicted
        for name, predicted in predictions.items():
            columns[f"{point}/{probe}/{name}"] = [names[index] for index in predicted.tolist()]
    return columns
