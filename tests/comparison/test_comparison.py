"""Runs as folders: what is compared, that the numbers are right, and what is refused."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.metrics import f1_score  # type: ignore[import-untyped]

from lightning_mllm.cli.main import main
from lightning_mllm.comparison.comparison import compare_runs
from tests.support.command_line import refusal

CLASSES = ("cat", "dog", "a owl")
N = 90


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _answers(seed: int, skill: float, ids: Sequence[int] = range(N)) -> list[dict[str, Any]]:
    """Answers of a model to samples whose classes depend on nothing but their ids."""
    rows = []
    for k in ids:
        generator = np.random.default_rng([seed, k])
        target = CLASSES[k % 3]
        said = target if generator.random() < skill else str(generator.choice([*CLASSES, ""]))
        answer = {"likelihood/prediction": said, "likelihood/correct": said == target}
        rows.append({"sample_id": f"s{k}", "target": target, **answer})
    return rows


def make_run(
    root: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    stage: str = "test-step20",
    **config: Any,
) -> Path:
    """Write the folder of a run with one evaluation and its config."""
    folder = root / name
    _write(folder / "evaluation" / stage / "predictions.csv", rows)
    config = {"seed_everything": 0, "trainer": {"run": {"name": name}}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    skills = {"a": 0.5, "b": 0.8, "c": 0.55}
    return [make_run(tmp_path, name, _answers(ord(name), skill)) for name, skill in skills.items()]


def test_p_values_and_scores_are_those_of_the_two_tables(runs: list[Path], tmp_path: Path) -> None:
    main(["compare", *map(str, runs), "--output", str(tmp_path / "out")])

    tables = {run.name: _read(run / "evaluation/test-step20/predictions.csv") for run in runs}
    right = {}
    for name, table in tables.items():
        right[name] = np.array([row["likelihood/correct"] == "True" for row in table])
    found = {(row["score"], row["run"]): row for row in _read(tmp_path / "out" / "comparison.csv")}
    p = {}
    for name in ("b", "c"):
        row = found["likelihood/accuracy", name]
        won, lost = (right[name] & ~right["a"]).sum(), (right["a"] & ~right[name]).sum()
        p[name] = binomtest(int(won), int(won + lost), 0.5).pvalue
        assert float(row["p"]) == pytest.approx(p[name], rel=1e-12)
        assert (int(row["won"]), int(row["lost"]), int(row["n"])) == (won, lost, N)
        difference = right[name].mean() - right["a"].mean()
        assert float(row["difference"]) == pytest.approx(difference)
        assert float(row["low_95"]) < difference < float(row["high_95"])
        macro = found["likelihood/macro_f1", name]
        for key, of in (("value", name), ("baseline_value", "a")):
            truth = [each["target"] for each in tables[of]]
            said = [each["likelihood/prediction"] for each in tables[of]]
            expected = f1_score(truth, said, labels=CLASSES, average="macro", zero_division=0)
            assert float(macro[key]) == pytest.approx(expected)
        assert (macro["p"], macro["baseline"]) == ("", "a")
    low, high = sorted(p, key=lambda name: p[name])  # Holm's correction of two
    for name, expected in ((low, 2 * p[low]), (high, max(2 * p[low], p[high]))):
        adjusted = float(found["likelihood/accuracy", name]["p_holm"])
        assert adjusted == pytest.approx(min(expected, 1))


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    first = make_run(tmp_path, "a", _answers(0, 0.5))
    rows = _answers(1, 0.7)

    found = []
    for name, table in (("b", rows), ("b2", rows[::-1])):
        (accuracy, _) = compare_runs([first, make_run(tmp_path, name, table)]).differences
        found.append((accuracy.won, accuracy.lost, accuracy.interval))

    assert found[0] == found[1]


def test_a_run_that_answers_the_same_differs_by_nothing(tmp_path: Path) -> None:
    rows = _answers(0, 0.5)

    runs = [make_run(tmp_path, name, rows) for name in ("a", "b")]
    accuracy, macro_f1 = compare_runs(runs).differences

    assert (accuracy.difference, accuracy.p, macro_f1.difference) == (0, 1, 0)
    assert accuracy.interval.low < 0 < accuracy.interval.high
    assert math.isnan(macro_f1.interval.low)


def test_the_command_shows_a_table_of_80_columns_and_names_its_files(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make_run(tmp_path, "b", _answers(ord("b"), 0.8), model={"lr": 0.1})
    for run in runs:
        curve = [{"step": step, "val/loss": 1 / step, "train/loss": 1} for step in (10, 20)]
        _write(run / "metrics.csv", curve)
    arguments = ["compare", *map(str, runs), "--output", str(tmp_path / "out")]

    main([*arguments, "--baseline", str(runs[1])])
    shown = capsys.readouterr().out
    main(arguments)

    lines = [line for line in shown.splitlines() if not line.startswith("Written to")]
    assert max(map(len, lines)) <= 80
    for said in ("McNemar", "Holm for 2", "N = 90", "model.lr", ": b (test-step20), a"):
        assert said in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("comparison.csv", "config_differences.csv", "curves.png")
    }
    assert (tmp_path / "out-2" / "comparison.csv").is_file()  # nothing is overwritten


def test_two_evaluations_of_one_run_are_said_to_be_its(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folders = []
    for stage, skill in (("zero_shot-step0", 0.3), ("test-step12", 0.8)):
        make_run(tmp_path, "leaves-e2e", _answers(0, skill), stage)
        folders.append(tmp_path / "leaves-e2e" / "evaluation" / stage)

    main(["compare", *map(str, folders), "--output", str(tmp_path / "out")])

    shown = capsys.readouterr().out
    assert "Both are from the run leaves-e2e." in shown
    assert "│ leaves-e2e/ " in shown and "│ test-step12 " in shown  # broken where a reader would


def test_a_run_without_a_test_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path, "a", _answers(0, 0.5), "val-step2")
    second = make_run(tmp_path, "b", _answers(1, 0.5), "val-step2")
    make_run(tmp_path, "b", _answers(1, 0.5), "test-step2")

    main(["compare", str(first), str(second), "--output", str(tmp_path / "out")])

    shown = capsys.readouterr().out
    assert "a has no test: validations are compared." in shown
    assert "The configs of the runs say the same." in shown
    assert compare_runs([first, second], "val").without_test == []


def test_the_last_test_is_compared_else_the_last_validation(tmp_path: Path) -> None:
    rows = _answers(0, 0.5)
    for name in ("a", "b"):
        for stage in ("val-step2", "val-step10", "zero_shot-step0"):
            make_run(tmp_path, name, rows, stage)
    paths = [tmp_path / "a", tmp_path / "b"]
    assert {run.stage for run in compare_runs(paths).runs} == {"val-step10"}
    assert {run.stage for run in compare_runs(paths, "zero_shot").runs} == {"zero_shot-step0"}

    for name in ("a", "b"):
        make_run(tmp_path, name, rows, "test-step4")

    assert {run.stage for run in compare_runs(paths).runs} == {"test-step4"}


def test_two_evaluations_of_one_run_are_compared(tmp_path: Path) -> None:
    make_run(tmp_path, "a", _answers(0, 0.3), "zero_shot-step0")
    make_run(tmp_path, "a", _answers(0, 0.8), "test-step20")
    folder = tmp_path / "a" / "evaluation"

    found = compare_runs([folder / "zero_shot-step0", folder / "test-step20"])

    assert [run.name for run in found.runs] == ["a/zero_shot-step0", "a/test-step20"]
    assert found.differences[0].won > found.differences[0].lost


def test_samples_that_not_all_have_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(tmp_path, "a", _answers(0, 0.5))
    second = make_run(tmp_path, "b", _answers(1, 0.5, range(30, N + 5)))

    main(["compare", str(first), str(second), "--output", str(tmp_path / "out")])

    shown = " ".join(capsys.readouterr().out.split())
    assert "N = 60" in shown
    assert "Of a 30 samples are left out" in shown and "Of b 5 samples are left out" in shown


def test_scorers_that_not_all_have_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [{**row, "generation/correct": True} for row in _answers(0, 0.5)]
    paths = [make_run(tmp_path, "a", more), make_run(tmp_path, "b", _answers(1, 0.5))]

    main(["compare", *map(str, paths), "--output", str(tmp_path / "out")])

    assert "not all runs have its answers: generation." in " ".join(capsys.readouterr().out.split())


def test_open_answers_are_compared_over_their_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        rows = []
        for k, row in enumerate(_answers(ord(name), 0.6)):
            own = {"kind": "colour", "prompt": "?", "reference": row["target"], "answer": "red"}
            right = row["likelihood/correct"]
            rows.append({"sample_id": k, **own, "correct": right, "picture": f"p{k // 3}"})
        make_run(tmp_path, name, rows)

    main(["compare", *(str(tmp_path / name) for name in "ab"), "--output", str(tmp_path / "out")])

    (row,) = _read(tmp_path / "out" / "comparison.csv")
    assert (row["score"], row["n"], row["pictures"]) == ("exact_match/accuracy", "90", "30")
    assert "90 samples are about 30 pictures" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("told", ["a", "b"])
def test_pictures_that_one_table_names_are_those_of_all(tmp_path: Path, told: str) -> None:
    answers: dict[str, list[dict[str, Any]]] = {
        name: [row for row in _answers(ord(name), 0.6, range(30)) for _ in range(3)]
        for name in "ab"
    }
    intervals = []
    for tables in ({told}, {"a", "b"}, set()):
        root = tmp_path / "-".join(["of", *sorted(tables)])
        for name, rows in answers.items():
            own = []
            for k, row in enumerate(rows):
                picture = {"picture": row["sample_id"]} if name in tables else {}
                own.append({**row, "sample_id": str(k), **picture})
            make_run(root, name, own)
        accuracy, _ = compare_runs([root / "a", root / "b"]).differences
        intervals.append((accuracy.pictures, accuracy.interval))

    assert intervals[0] == intervals[1]
    assert (intervals[0][0], intervals[2][0]) == (30, 90)
    assert intervals[0][1].low < intervals[2][1].low  # wider than that of independent samples


def test_what_is_said_of_shared_pictures_holds_for_macro_f1_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        rows = _answers(ord(name), 0.6)
        make_run(tmp_path, name, [{**row, "picture": k // 3} for k, row in enumerate(rows)])

    main(["compare", *(str(tmp_path / name) for name in "ab"), "--output", str(tmp_path / "out")])

    shown = " ".join(capsys.readouterr().out.split())
    assert "The test and the intervals of macro-F1 count them as independent" in shown


def test_the_folder_that_is_named_is_the_one_that_was_written(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "of [bold] runs"

    main(["compare", *map(str, runs), "--output", str(output)])

    assert output.is_dir() and f"Written to {output}: " in capsys.readouterr().out


def test_analyses_of_all_runs_stand_side_by_side(tmp_path: Path) -> None:
    for name, values in (("a", (1, 2)), ("b", (3, 4, 5))):
        folder = make_run(tmp_path, name, _answers(0, 0.5))
        for step in (0, 20):
            rows = [
                {"layer": k, "measure": "share", "value": value * (step / 20), "n": 9}
                for k, value in enumerate(values)
            ]
            _write(folder / f"analysis/test-step{step}/lens/summary.csv", rows)
        points = [{"token": 0, "x": 0.5, "y": 0.5}]
        _write(folder / "analysis/test-step20/map/summary.csv", points)

    main(["compare", *(str(tmp_path / name) for name in "ab"), "--output", str(tmp_path / "out")])

    (file,) = (tmp_path / "out").glob("analysis-*.csv")  # nothing of points, which have no value
    assert file.name == "analysis-test-lens.csv"
    table = _read(file)
    numbers = [(row["layer"], row["a/value"], row["b/value"]) for row in table]
    assert numbers == [("0", "1.0", "3.0"), ("1", "2.0", "4.0")]


def test_options_that_differ_are_listed_and_other_classes_as_a_whole(tmp_path: Path) -> None:
    policies: list[Any] = [
        {"class_path": "lib.ProjectorOnly", "init_args": {}},
        {"class_path": "lib.Lora", "init_args": {"rank": 4, "modules": [], "alpha": None}},
        {"class_path": "lib.Lora", "init_args": {"rank": 8, "modules": [], "alpha": None}},
    ]
    callbacks = [
        [],
        [{"class_path": "lib.Probe", "init_args": {"seeds": [0, 1]}}],
        [{"class_path": "lib.Probe", "init_args": {"seeds": [2]}}],
    ]
    runs = []
    for k, name in enumerate("abc"):
        model = {"policy": policies[k], "dtype": "auto", "callbacks": callbacks[k]}
        runs.append(make_run(tmp_path, name, _answers(0, 0.5), model=model, seed_everything=k))

    assert compare_runs(runs[:2]).options == {
        "model.callbacks.Probe": ["-", "Probe(seeds=[0, 1])"],
        "model.policy": ["ProjectorOnly()", "Lora(rank=4)"],
        "seed_everything": ["0", "1"],
    }
    assert compare_runs(runs[1:]).options == {
        "model.callbacks.Probe.seeds": ["[0, 1]", "[2]"],
        "model.policy.rank": ["4", "8"],
        "seed_everything": ["1", "2"],
    }


def test_what_cannot_be_compared_is_said_in_a_sentence(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = runs[0]
    other = make_run(tmp_path, "other", [{**row, "target": "dog"} for row in _answers(0, 0.5)])
    far = make_run(tmp_path, "far", _answers(0, 0.5, range(100, 120)))
    validated = make_run(tmp_path, "validated", _answers(0, 0.5), "val-step3")
    scorer = make_run(
        tmp_path, "scorer", [{"sample_id": "s0", "target": "cat", "x/correct": "True"}]
    )
    broken = make_run(tmp_path, "broken", [{"sample_id": "s0", "target": "cat"}])
    unclear = make_run(
        tmp_path, "unclear", [{"sample_id": "s0", "target": "cat", "likelihood/correct": "yes"}]
    )
    (tmp_path / "empty").mkdir()
    for arguments, parts in (
        ([first], ("two runs or more", str(first))),
        ([], ("two runs or more",)),
        ([first, first], ("named twice",)),
        ([first, first / "evaluation" / "test-step20"], ("the same evaluation, test-step20",)),
        (
            [*(run / "evaluation/test-step20" for run in runs[:2]), "--split", "val"],
            ("--split val changes nothing",),
        ),
        ([first, tmp_path / "aa"], ("no folder", 'mean "a"?')),
        ([first, tmp_path / "empty"], ("not the folder of a run", "config.yaml")),
        ([first, other], ("different data", "60 of 90", "'s0' 'cat' and 'dog'")),
        ([first, far], ("different samples", "90 and 20", "seed")),
        ([first, validated], ("a: test; validated: val", "lightning test")),
        ([first, validated, "--split", "val"], ("a has no answers", "only of these: test")),
        ([first, scorer], ("no scorer in common", "a: likelihood; scorer: x")),
        ([first, broken], ("not a table of answers", "broken")),
        ([first, unclear], ("'yes'", "expected True or False")),
        ([first, other, "--baseline", far], ("--baseline", "none of the runs")),
        ([first, other, "--baselin", first], ("unrecognized", 'mean "--baseline"?')),
    ):
        message = refusal(capsys, ["compare", *arguments])
        assert all(part in message for part in parts), message


def test_runs_of_one_name_are_called_as_they_were_typed(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / root, "run", _answers(0, 0.5)) for root in ("x", "y")]

    assert [run.name for run in compare_runs(paths).runs] == [path.as_posix() for path in paths]


@pytest.mark.slow
def test_a_comparison_imports_neither_torch_nor_lightning() -> None:
    program = (
        "import sys, lightning_mllm.cli.commands.compare\n"
        "assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
