from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.metrics import f1_score  # type: ignore[import-untyped]

from lightning_mllm.errors import DataError
from lightning_mllm.study import ProjectionCommand, ProjectionStudyRates, ProjectionStudyRichness
from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.projection.tables import round_table_percent
from tests.study.conftest import Change, FakeLightning, folders_of, write, write_study

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProjectionCommand, Path]:
    """A study with probes, drift and a sweep, all cells done, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        made = replace(
            write_study(folder, patch),
            richness=ProjectionStudyRichness(),
            drift=True,
            seeds=[0, 1, 2],
            sweep=ProjectionStudyRates(preset="paper", rates=[1e-4, 1e-3, 3e-3]),
        )
        assert not run_study(made, FakeLightning(samples=600))
    return made, folder


@pytest.fixture
def finished(
    finished_once: tuple[ProjectionCommand, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ProjectionCommand:
    """A copy of that study in the working folder."""
    made, folder = finished_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return made


def rows_of(name: str) -> Rows:
    with Path("studies/small", name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_study_has_results_tables_verdicts_and_figures(
    finished: ProjectionCommand,
) -> None:
    results = rows_of("results.csv")
    assert len({row["cell"] for row in results}) == 3 * 2 * (1 + 2 + 2)
    first = next(row for row in results if row["cell"] == "tiny.leaves.paper.ft_proj.seed0")
    assert (first["measure"], first["value"], first["n"]) == (
        "test/generation/accuracy",
        "0.5",
        "600",
    )
    assert (first["low_95"], first["high_95"], first["epoch"]) == ("0.4", "0.6", "")
    probes = {row["measure"]: row["value"] for row in results if row["epoch"] == "0"}
    assert float(probes["test/probe/post-mean/mlp/accuracy"]) == pytest.approx(
        0.55
    )  # mean over the probe's seeds
    assert probes["drift/post-mean/cka"] == "0.9"

    table = rows_of("table1.csv")
    assert {row["state"] for row in table} == {
        "random uniform",
        "image-only",
        "zero_shot",
        "ft_proj",
        "ft_e2e",
    }
    chance = [
        row for row in table if (row["state"], row["measure"]) == ("random uniform", "accuracy")
    ]
    assert all(0.31 < float(row["value"]) < 0.36 for row in chance)
    published = {
        row["published"]
        for row in table
        if row["domain"] == "plantdoc" and row["state"] == "ft_e2e"
    }
    assert published == {"0.5984", "0.6525"}

    report = Path("studies/small/report.md").read_text()
    assert "published (LLaVA-1.5-7B)" in report
    assert "30 of 30 cells are finished" in report
    assert {path.name for path in Path("studies/small/figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("slopes", "slopes-accuracy", "richness", "drift")
        for kind in ("png", "csv")
    }

    decided = {(row["claim"], row["part"], row["domain"]): row for row in rows_of("verdict.csv")}
    for claim in (
        "the MLLM's macro-F1: zero-shot < FT-Proj < FT-E2E",
        "richness: FT-Proj < FT-E2E < original",
    ):
        for domain in ("leaves", "plantdoc", "all"):
            assert decided[claim, "", domain]["verdict"] == "holds"
    whole = decided[claim, "", "all"]
    assert (whole["seeds"], whole["n"]) == ("3", "1200")
    part = decided[claim, "FT-Proj < FT-E2E in richness", "leaves"]
    assert float(part["low_95"]) < float(part["difference"]) < float(part["high_95"])
    assert part["n"] == "600"
    sweep = decided["FT-Proj loses less richness at a lower learning rate", "", "all"]
    assert sweep["verdict"] == "undecided"  # the command line of this test takes no notice of rates


def test_what_only_the_probe_gets_right_is_counted_from_the_answers_also_of_older_cells(
    finished: ProjectionCommand,
) -> None:
    with gzip.open("studies/small/answers.csv.gz", "rt", newline="") as file:
        answers = list(csv.DictReader(file))
    for policy in ("zero_shot", "ft_proj", "ft_e2e"):
        shares = []
        for seed in finished.seeds:
            preset = "" if policy == "zero_shot" else "paper."
            cell = f"tiny.leaves.{preset}{policy}.seed{seed}"
            own = [row for row in answers if row["cell"] == cell]
            said = {row["sample_id"]: row["answer0"] for row in own if row["kind"] == "model"}
            for row in own:
                if row["kind"] == "richness":
                    wrong = said[row["sample_id"]] != row["target"]
                    read = [row[name] == row["target"] for name in ("answer0", "answer1")]
                    shares += [each and wrong for each in read]
        (shown,) = (
            row
            for row in rows_of("table2.csv")
            if (row["domain"], row["preset"], row["state"]) == ("leaves", "paper", policy)
            and row["measure"] == "probe right, MLLM wrong (share)"
        )
        assert float(shown["value"]) == pytest.approx(sum(shares) / len(shares))
        assert float(shown["low_95"]) < float(shown["value"]) < float(shown["high_95"])
        assert not shown["published"]


def test_the_cells_of_each_epoch_are_results_where_a_cell_has_them(
    finished: ProjectionCommand,
) -> None:
    found = [row for row in rows_of("results.csv") if row["measure"].endswith("/probe_only")]

    assert {row["policy"] for row in found} == {"ft_e2e"}
    assert {row["measure"] for row in found} == {"val/probe/post-mean/mlp/generation/probe_only"}
    assert {(row["epoch"], row["value"], row["low_95"], row["n"]) for row in found} == {
        ("0", "0.3", "0.2", "30")
    }


def test_a_run_under_several_presets_is_one_line(study: Change) -> None:
    same = {name: {"ft_proj": ["proj.yaml"]} for name in ("paper", "matched")}

    run_study(study(drift=True, presets=same), FakeLightning())

    assert {(row["line"], row["seeds"]) for row in rows_of("figures/drift.csv")} == {
        ("paper = matched, ft_proj", "2")
    }


def test_the_picture_of_a_drift_that_is_not_measured_any_more_goes(
    finished: ProjectionCommand,
) -> None:
    stale = Path("studies/small/figures/drift-elsewhere.png")
    stale.touch()

    run_study(finished, FakeLightning())

    assert not stale.exists()
    assert stale.with_name("drift.png").exists()


def test_the_answers_that_are_shipped_give_the_numbers_of_the_tables(
    finished: ProjectionCommand,
) -> None:
    with gzip.open("studies/small/answers.csv.gz", "rt", newline="") as file:
        answers = list(csv.DictReader(file))
    assert {row["kind"] for row in answers} == {"model", "richness", "image-only"}

    for kind, measure in (("model", "MLLM macro-F1"), ("richness", "richness (macro-F1)")):
        scores = []
        for seed in finished.seeds:
            own = [
                r
                for r in answers
                if (r["cell"], r["kind"]) == (f"tiny.leaves.paper.ft_proj.seed{seed}", kind)
            ]
            names = [name for name in own[0] if name.startswith("answer") and own[0][name]]
            truth = [row["target"] for row in own]
            scores += [
                f1_score(truth, [row[name] for row in own], average="macro") for name in names
            ]
        (shown,) = (
            row
            for row in rows_of("table2.csv")
            if (row["domain"], row["preset"], row["state"], row["measure"])
            == ("leaves", "paper", "ft_proj", measure)
        )
        assert float(shown["value"]) == pytest.approx(sum(scores) / len(scores))
    halves = [row["half1"] for row in answers if row["kind"] == "richness"]
    assert len(halves) == 30 * 600
    assert all(halves)


def test_a_richness_without_halves_of_the_training_samples_has_no_interval_and_is_refused(
    finished: ProjectionCommand,
) -> None:
    path = next(
        Path("studies/small/cells/tiny.leaves.paper.ft_e2e.seed1").rglob("probe-predictions.csv")
    )
    header, rest = path.read_text().split("\n", 1)
    path.write_text(header.replace("post-mean/mlp/half", "post-mean/mlp/part") + "\n" + rest)

    with pytest.raises(
        DataError, match=r"has 0 columns post-mean/mlp/half\*.*Give ProbeEachEpoch halves: 20"
    ):
        run_study(finished, FakeLightning())


def test_changes_are_against_the_original_and_rounded(finished: ProjectionCommand) -> None:
    table = {
        row["state"]: row
        for row in rows_of("table2.csv")
        if (row["domain"], row["measure"], row["preset"])
        == ("plantdoc", "richness (macro-F1)", "paper")
    }

    assert table["zero_shot"]["change_percent"] == ""
    values = {state: float(row["value"]) for state, row in table.items()}
    exact = 100 * (values["ft_proj"] / values["zero_shot"] - 1)
    assert table["ft_proj"]["change_percent"] == f"{exact:.2f}"
    assert table["ft_proj"]["published_change_percent"] == "-27.49"


def test_two_runs_of_a_study_give_the_same_files(finished: ProjectionCommand) -> None:
    first = {path.name: path.read_bytes() for path in finished.folder.glob("*.*")}

    run_study(finished, FakeLightning())

    assert {path.name: path.read_bytes() for path in finished.folder.glob("*.*")} == first


def test_a_resumed_run_has_each_epoch_once(study: Change, fake: FakeLightning) -> None:
    made = study(
        richness=ProjectionStudyRichness(),
        seeds=[0],
        domains={"leaves": ["leaves.yaml"]},
        drift=True,
    )
    run_study(made, fake)
    folder = folders_of(made)["tiny.leaves.paper.ft_proj.seed0"]
    folder.done_file.unlink()
    checkpoint = folder.runs()[0] / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()

    run_study(made, FakeLightning())

    assert len(folder.runs()) == 2

    measure = "val/probe/post-mean/mlp/macro_f1"
    epochs = [
        row["epoch"]
        for row in rows_of("results.csv")
        if (row["cell"], row["measure"]) == (folder.cell.id, measure)
    ]
    assert epochs == ["-1", "0"]


def test_a_study_that_is_not_finished_compares_the_seeds_that_all_have_and_says_so(
    study: Change, fake: FakeLightning
) -> None:
    fake.breaks = {"tiny.leaves.paper.ft_proj.seed0": "at once"}

    run_study(study(seeds=[0, 1, 2]), fake)

    seeds = {(row["domain"], row["seeds"]) for row in rows_of("table1.csv")}
    assert seeds == {("leaves", "2"), ("plantdoc", "3")}
    report = Path("studies/small/report.md").read_text()
    assert "- tiny, leaves: 1, 2\n- tiny, plantdoc: 0, 1, 2" in report
    assert "## Cells that are not finished\n\n- tiny.leaves.paper.ft_proj.seed0: to do\n" in report
    assert "its config files are `zero.yaml`" in report


def test_nothing_holds_over_all_domains_while_one_is_missing(study: Change) -> None:
    fake = FakeLightning(samples=600)
    for seed in range(3):
        fake.breaks |= {
            f"tiny.plantdoc.paper.{policy}.seed{seed}": "at once"
            for policy in ("ft_proj", "ft_e2e")
        }

    run_study(study(seeds=[0, 1, 2]), fake)

    claim = "the MLLM's macro-F1: zero-shot < FT-Proj < FT-E2E"
    decided = {
        row["domain"]: row
        for row in rows_of("verdict.csv")
        if (row["claim"], row["part"]) == (claim, "")
    }
    assert {domain: row["verdict"] for domain, row in decided.items()} == {
        "leaves": "holds",
        "plantdoc": "undecided",
        "all": "undecided",
    }
    assert decided["plantdoc"]["seeds"] == "0"


def test_a_cell_of_several_presets_counts_under_each(study: Change, fake: FakeLightning) -> None:
    paper = study().presets["paper"]
    made = study(
        presets={"paper": paper, "matched": {**paper, "ft_proj": ["common.yaml"]}},
        richness=ProjectionStudyRichness(),
    )
    run_study(made, fake)

    assert not [cell for cell in fake.cells if ".matched.ft_e2e." in cell]
    values = {
        row["preset"]: row["value"]
        for row in rows_of("table1.csv")
        if (row["domain"], row["state"], row["measure"]) == ("leaves", "ft_e2e", "accuracy")
    }
    assert values["paper"] == values["matched"]
    of_cell = [
        row["preset"]
        for row in rows_of("results.csv")
        if row["cell"] == "tiny.leaves.paper.ft_e2e.seed0"
    ]
    assert set(of_cell) == {"paper", "matched"}
    assert "- ft_e2e of paper is that of matched" in Path("studies/small/report.md").read_text()


def test_clip_is_compared_with_zero_shot_where_a_cell_has_it(study: Change) -> None:
    fake = FakeLightning(samples=600)

    def with_clip(arguments: Sequence[str], log: Path, lock: int) -> None:
        fake(arguments, log, lock)
        if arguments[0] == "test":
            test = next(log.parent.rglob("predictions.csv"))
            with test.open(newline="") as file:
                rows = [
                    [row["sample_id"], row["target"], row["target"]] for row in csv.DictReader(file)
                ]
            write(
                test.with_name("clip-predictions.csv"), ["sample_id", "target", "prediction"], rows
            )
            scores = {
                "n": 600,
                "accuracy": 1.0,
                "macro_f1": 1.0,
                "invalid_rate": 0.0,
                "accuracy_interval_95": [1.0, 1.0],
            }
            test.with_name("clip.json").write_text(json.dumps(scores))

    run_study(study(seeds=[0, 1, 2]), with_clip)

    clip = {row["value"] for row in rows_of("table1.csv") if row["state"] == "CLIP zero-shot"}
    assert clip == {"1.0"}
    decided = {
        row["claim"]: row["verdict"] for row in rows_of("verdict.csv") if row["domain"] == "all"
    }
    assert decided["CLIP beats the MLLM zero-shot"] == "holds"
    own = [row for row in rows_of("results.csv") if row["measure"] == "test/clip/accuracy"]
    assert {(row["policy"], row["value"], row["n"], row["low_95"]) for row in own} == {
        ("zero_shot", "1.0", "600", "1.0")
    }
    assert len(own) == 3 * 2


def test_a_file_that_went_missing_is_named(study: Change, fake: FakeLightning) -> None:
    run_study(study(), fake)
    next(iter(sorted(Path().rglob("predictions.csv")))).unlink()

    with pytest.raises(
        DataError, match=r"predictions\.csv is missing.* delete studies/small/cells/tiny\.leaves"
    ):
        run_study(study(), fake)


def test_numbers_are_rounded_half_to_even_as_written() -> None:
    numbers = {
        -27.486: "-27.49",
        -6.227: "-6.23",
        0.125: "0.12",
        0.135: "0.14",
        1.005: "1.00",
        2.675: "2.68",
    }

    assert {number: str(round_table_percent(number)) for number in numbers} == numbers
