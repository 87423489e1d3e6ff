"""A command line that only writes what the runs of a study of alignment leave behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.study.conftest import option

READINGS = ("ima_input avg", "ima_same_layer avg")


class FakeMeasurements:
    """Writes what a run would: with k, the alignment k / 100 and the accuracy rise, CHAIR falls."""

    def __init__(self, without: str = "", flat: bool = False) -> None:
        self.calls: list[list[str]] = []
        self.without, self.flat = without, flat

    def __call__(self, arguments: Sequence[str], log: Path, lock: int) -> None:
        self.calls.append(list(arguments))
        cell = str(option(arguments, "--trainer.run.name"))
        name, _, measure = cell.partition(".")
        level = int("".join(filter(str.isdigit, name)))
        root = Path(str(option(arguments, "--trainer.run.root")))
        taken = len([*root.glob(f"{cell}*/")])
        run = root / (f"{cell}-{taken + 1}" if taken else cell)
        test = run / "evaluation" / "test-step0"
        test.mkdir(parents=True)
        if measure == "alignment":
            self._write_alignment(run / "analysis" / "test-step0" / "alignment", level)
            return
        good = 0.5 if self.flat else 0.3 + level / 50
        scores = _numbers(("accuracy", "precision", "recall", "f1", "yes_rate"), good)
        content: dict[str, Any] = {
            "presence": {**scores, "samplings": {"random": scores}},
            "captions": _numbers(("chair_i", "chair_s", "recall"), 1 - good),
            "task.vqa": {"exact_match": scores},
            "task.classes": {"scorers": {"generation": scores}},
        }[measure]
        file = {"presence": "pope.json", "captions": "chair.json"}.get(measure, "scores.json")
        if file != self.without:
            (test / file).write_text(json.dumps(content))

    def _write_alignment(self, folder: Path, level: int) -> None:
        folder.mkdir(parents=True)
        number = {
            "value": level / 100,
            "low_95": level / 100 - 0.01,
            "high_95": level / 100 + 0.01,
            "n": 32,
        }
        scores = {"all": dict.fromkeys(READINGS, number)}
        (folder / "settings.json").write_text(
            json.dumps({"name": "alignment", "found": {"scores": scores}})
        )
        rows = [
            ["residual", "all", name, layer, level / 100] for name in READINGS for layer in range(3)
        ]
        rows.append(["LN1", "all", READINGS[0], 0, 0.5])
        with (folder / "summary.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["state", "tokens", "measure", "layer", "value"], *rows])


def _numbers(names: Sequence[str], value: float) -> dict[str, Any]:
    intervals = {f"{name}_interval_95": [value - 0.1, value + 0.1] for name in names}
    return {"n": 96, **dict.fromkeys(names, value), **intervals}
