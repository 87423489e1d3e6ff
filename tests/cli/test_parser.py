"""Lists that config files and the command line give one after another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonargparse import Namespace

from lightning_mllm.callbacks import ProbeEachEpoch, SaveFeatures
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.parser import Parser, whole_number_first
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import NearestCentroid, Point
from lightning_mllm.trainer import Trainer
from tests.support.command_line import SMALL_DIGITS, TRIAL, isolate

PROBES = """
trainer:
  run: {tags: [one, two]}
  devices: [0, 1]
  callbacks:
    - class_path: ProbeEachEpoch
      init_args: {points: [{place: pre}]}
    - class_path: RepresentationDrift
"""
FEATURES = "trainer: {callbacks: [{class_path: SaveFeatures}]}"
MORE = "trainer: {callbacks+: [{class_path: SaveFeatures}]}"
ONE = "trainer: {callbacks: {class_path: SaveFeatures}}"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def parse(*arguments: str, **files: str) -> Namespace:
    """Parse what a fit takes for trainer and model: the files in order, then the arguments."""
    parser = Parser(parser_mode="omegaconf", allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(MLLMModule, "model")
    configs = []
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
        configs += ["--config", f"{name}.yaml"]
    return parser.parse_args(["--model.checkpoint=any", *configs, *arguments])


def callbacks(config: Namespace) -> list[str]:
    return [each.class_path.rpartition(".")[2] for each in config.trainer.callbacks]


@pytest.mark.parametrize("later", [FEATURES, ONE])
def test_a_list_that_a_later_file_replaces_is_said(
    later: str, caplog: pytest.LogCaptureFixture
) -> None:
    parse(a=PROBES, b=later)

    (record,) = caplog.records
    assert record.getMessage() == (
        "b.yaml sets trainer.callbacks again, which drops what a.yaml has there: ProbeEachEpoch, "
        "RepresentationDrift. To add to a list, write `callbacks+`."
    )


def test_so_is_one_that_the_command_line_replaces(caplog: pytest.LogCaptureFixture) -> None:
    parse("--trainer.callbacks", "SaveFeatures", a="{}", b=PROBES)

    (record,) = caplog.records
    assert record.getMessage().startswith(
        "The command line sets trainer.callbacks again, which drops what b.yaml has"
    )


def test_single_classes_lists_of_words_and_null_are_no_exceptions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = "model: {scorers: {class_path: Likelihood}}"
    parse(a=PROBES, b="trainer: {callbacks: null, run: {tags: [one]}}", c=scorer, d=scorer)
    assert {record.args[1:4] for record in caplog.records if record.args} == {  # type: ignore[index]
        ("trainer.callbacks", "a.yaml", "ProbeEachEpoch, RepresentationDrift"),
        ("trainer.run.tags", "a.yaml", "two"),
    }

    caplog.clear()
    parse(a=scorer, b="model: {scorers: {class_path: Generation}}")

    assert (
        "b.yaml sets model.scorers again, which drops what a.yaml has there: Likelihood"
        in caplog.text
    )


def test_nothing_is_said_where_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    added = parse("--trainer.callbacks+=FreezeAudit", a=PROBES, b=MORE)
    again = parse(a=PROBES, b=PROBES.replace("place: pre", "place: post").replace("[0, 1]", "[0]"))
    parse(
        "--model.scorers=[Likelihood]", "--trainer.run.tags=[three]", a=PROBES
    )  # the default; a value typed

    assert callbacks(added) == [
        "ProbeEachEpoch",
        "RepresentationDrift",
        "SaveFeatures",
        "FreezeAudit",
    ]
    assert callbacks(again) == ["ProbeEachEpoch", "RepresentationDrift"]
    assert not caplog.records


def test_the_parser_of_a_subcommand_says_it_too(
    caplog: pytest.LogCaptureFixture, tiny_llava: str
) -> None:
    Path("a.yaml").write_text(PROBES.replace("devices: [0, 1]", "devices: 1"))
    Path("b.yaml").write_text(ONE)
    arguments = [
        "fit",
        "--config",
        "a.yaml",
        "--config",
        "b.yaml",
        "--model.checkpoint",
        tiny_llava,
        *SMALL_DIGITS,
    ]

    with pytest.raises(SystemExit):
        ModelCLI([*arguments, "--print_config"])

    assert (
        "b.yaml sets trainer.callbacks again, which drops what a.yaml has there: ProbeEachEpoch"
        in caplog.text
    )


def test_one_of_a_kind_needs_no_list(tiny_llava: str) -> None:
    Path("one.yaml").write_text(
        "trainer: {callbacks: {class_path: SaveFeatures, init_args: {points: {place: pre}}}}\n"
        "model: {scorers: {class_path: Likelihood}}"
    )
    arguments = ("--model.checkpoint", tiny_llava, *SMALL_DIGITS, *TRIAL)

    cli = ModelCLI(["validate", "--config", "one.yaml", *arguments])

    (saving,) = (each for each in cli.trainer.callbacks if isinstance(each, SaveFeatures))  # type: ignore[attr-defined]
    assert [point.place for point in saving.points] == ["pre"]
    assert [scorer.name for scorer in cli.model.evaluator.scorers] == ["likelihood"]


def test_nor_do_points_and_probes() -> None:
    callback = (
        "{class_path: ProbeEachEpoch, "
        "init_args: {points: {place: pre}, probes: {class_path: LinearProbe}}}"
    )

    config = parse(a=f"trainer: {{callbacks: {callback}}}")
    probing = ProbeEachEpoch(points=Point("pre"), probes=NearestCentroid())

    assert config.trainer.callbacks.init_args.points.as_dict() == asdict(Point("pre"))
    assert (probing.points, probing.probes) == ((Point("pre"),), (NearestCentroid(),))
    assert callbacks(
        parse("--trainer.callbacks+=FreezeAudit", a=f"trainer: {{callbacks: {callback}}}")
    ) == [
        "ProbeEachEpoch",
        "FreezeAudit",
    ]


@pytest.mark.parametrize("kind", [float | int | None, float | str | int, int | float])
def test_a_whole_number_is_tried_before_a_share(kind: Any) -> None:
    members = get_args(whole_number_first(kind))

    assert members.index(int) < members.index(float) and {*members} == {*get_args(kind)}


LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")


def test_a_limit_of_1_is_one_batch_and_not_all_whatever_was_imported_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [word for name in LIMITS for word in (f"--trainer.{name}", "1")]
    shown = ("--trainer.val_check_interval", "1", "--trainer.overfit_batches", "0.5")

    with pytest.raises(SystemExit):
        ModelCLI(["fit", *options, *shown, "--print_config"])

    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    limits = [trainer[name] for name in (*LIMITS, "val_check_interval")]
    assert limits == [1] * 5 and {*map(type, limits)} == {int}
    assert trainer["overfit_batches"] == 0.5
