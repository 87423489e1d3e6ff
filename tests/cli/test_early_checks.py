"""Mistakes that arguments and config files show are answered before anything heavy is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli import early_checks
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.early_checks import check_early
from lightning_mllm.cli.other_names import OTHER_NAMES
from lightning_mllm.cli.resumed_fit import checkpoint_file
from tests.cli.test_command_parser import HEAVY
from tests.support.command_line import CONFIGS, isolate, refusal
from tests.support.shipped_configs import shipped_yaml

START = ["--config", "quickstart.yaml"]
FILES = {
    "quickstart.yaml": (CONFIGS / "quickstart.yaml").read_text(),
    "preset.yaml": (CONFIGS / "presets/paper/ft_proj.yaml").read_text(),
    "digits.yaml": (CONFIGS / "data/digits.yaml").read_text(),
    "study.yaml": (CONFIGS / "studies/projection/study.yaml").read_text(),
    "lens.yaml": (CONFIGS / "analysis/answer_lens.yaml").read_text(),
    "callback.yaml": "trainer: {callbacks: [{class_path: ProbeEachEpok}]}",
    "stage.yaml": "model: {checkpoint: '${testbed:instructd}'}",
    "tab.yaml": "model:\n\tcheckpoint: x\n",
    "bracket.yaml": "model: {checkpoint: x\ndata: Digits\n",
    "my_data.py": "class Leaves: pass\n",
    "folder/a.yaml": "",
    "runs/a/config.yaml": (CONFIGS / "quickstart.yaml").read_text(),
    "runs/a/checkpoints/last.ckpt": "",
}
MODEL, DATA = ["--model.checkpoint", "x"], ["--data", "Digits"]
# what is typed -> what the answer says
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "callback": (
        ["fit", *START, "--trainer.callbacks", "ProbeEachEpok"],
        ["--trainer.callbacks", "no callback 'ProbeEachEpok'", 'Did you mean "ProbeEachEpoch"'],
    ),
    "callback in a file": (
        ["fit", *START, "--config", "callback.yaml"],
        ["callback.yaml", "no callback 'ProbeEachEpok'", 'Did you mean "ProbeEachEpoch"'],
    ),
    "rounded away": (
        ["fit", *START, "--model.trained_dtype", "bfloat16"],
        ["AdamW does not round stochastically", "0.168 instead of 0.139", "bf16_stochastic_round"],
    ),
    "no trained dtype": (
        ["fit", *START, "--model.trained_dtype", "bfloat"],
        ["takes float32, bfloat16", 'Did you mean "bfloat16"'],
    ),
    "torchao's offload": (
        ["fit", *START, "--model.optimizer", "torchao.optim.CPUOffloadOptimizer"],
        ["misses gradients that are clipped", "OffloadedAdamW"],
    ),
    "no data": (["fit", *MODEL], ["`lightning fit` needs data", "--data ImageFolder"]),
    "no data but options": (
        ["fit", *MODEL, "--config", "preset.yaml"],
        ["needs data", "preset.yaml has only options of it", "For example"],
    ),
    "no checkpoint": (["test", *DATA], ["needs model.checkpoint", "--model.checkpoint llava-hf"]),
    "no analysis": (["analyze", *MODEL, *DATA], ["needs analysis", "--analysis AnswerLens"]),
    "no data to check": (["data", "check"], ["`lightning data check` needs data"]),
    "lr": (
        ["fit", *START, "--model.lr", "1"],
        ["error: there is no option model.lr", "model.learning_rates"],
    ),
    "misspelt option": (
        ["fit", *START, "--trainer.max_epoch", "3"],
        ["error: there is no option trainer.max_epoch", 'Did you mean "trainer.max_epochs"'],
    ),
    "misspelt option of checkpoints": (
        ["fit", *START, "--checkpointing.bset", "val/loss"],
        ["there is no option checkpointing.bset", 'Did you mean "checkpointing.best"'],
    ),
    "epochs": (["fit", *START, "--epochs", "1"], ["no option epochs", "trainer.max_epochs"]),
    "preset first": (
        ["fit", *MODEL, "--config", "preset.yaml", "--config", "digits.yaml"],
        ["preset.yaml sets data", "--config digits.yaml first, then --config preset.yaml"],
    ),
    "option first": (
        ["fit", *MODEL, "--data.init_args.batch_size", "4", *DATA],
        ["--data first, then --data.init_args.batch_size"],
    ),
    "stage": (
        ["fit", *DATA, "--model.checkpoint", "${testbed:wrong}"],
        ["no model 'wrong'", "aligned, before, instructed"],
    ),
    "stage in a file": (
        ["fit", *DATA, "--config", "stage.yaml"],
        ["stage.yaml", "no model 'instructd'", 'Did you mean "instructed"'],
    ),
    "config": (
        ["fit", "--config", "quikstart.yaml"],
        ["no config file quikstart.yaml", 'Did you mean "quickstart.yaml"'],
    ),
    "shipped config": (
        ["fit", "--config", "llava-1.5-7b.yml"],
        ["no config file", "lightning configs configs", "--config configs/model/llava-1.5-7b.yaml"],
    ),
    "folder": (["fit", "--config", "folder"], ["folder is a folder", "a.yaml"]),
    "config without a file": (["fit", "--config"], ["After --config there must be a file"]),
    "tab": (["fit", "--config", "tab.yaml"], ["tab.yaml, line 2", "tab", "spaces"]),
    "bracket": (["fit", "--config", "bracket.yaml"], ["bracket.yaml, line 2", "line 1", "YAML"]),
    "config of a study": (
        ["fit", "--config", "study.yaml"],
        ["study.yaml is for a study", "lightning study --config"],
    ),
    "study of a run": (
        ["study", "--config", "quickstart.yaml"],
        ["quickstart.yaml is for a single run", "lightning fit"],
    ),
    "config of an analysis": (
        ["fit", *START, "--config", "lens.yaml"],
        ["lens.yaml sets analysis", "for `lightning analyze`"],
    ),
    "split": (
        ["fit", *START, "--split", "val"],
        ["`lightning fit` does not have", "for `lightning predict` and `lightning extract` and"],
    ),
    "config without --config": (["fit", "quickstart.yaml"], ["Write --config quickstart.yaml"]),
    "word": (["fit", *START, "extra"], ["'extra' belongs to no option"]),
    "word for a number": (
        ["fit", *START, "--trainer.max_epochs", "ten"],
        ["trainer.max_epochs takes a whole number (int), not 'ten'"],
    ),
    "word for a rate": (
        ["fit", *START, "--model.warmup_ratio", "little"],
        ["model.warmup_ratio takes a number (float), not 'little'"],
    ),
    "geometry": (
        ["fit", *START, "--data.init_args.geometry", "padd"],
        ["data.init_args.geometry takes pad, crop", 'Did you mean "pad"'],
    ),
    "split that is none": (
        ["extract", *START, "--output", "x", "--split", "tset"],
        ["split takes train, val, test, not 'tset'", 'Did you mean "test"'],
    ),
    "no output": (["export", *MODEL], ["`lightning export` needs output", "--output my_folder"]),
    "no folder for a bank": (["bank", *MODEL], ["`lightning bank` needs output"]),
    "checkpoint of a training": (
        ["test", *START, "--ckpt_path", "runs/b"],
        ["--ckpt_path: there is no checkpoint file runs/b", "folder of a run"],
    ),
    "run that goes on": (
        ["fit", "--resume", "runs/b"],
        ["runs/b is not the folder of a run", "Runs there: a"],
    ),
    "analysis that goes on without data": (
        ["analyze", *MODEL, "--analysis", "AnswerLens", "--resume", "runs/a"],
        ["needs data"],
    ),
    "kind of class": (
        ["fit", *START, "--data", "ProbeEachEpoch"],
        ["ProbeEachEpoch is no dataset", "Digits"],
    ),
    "policy": (
        ["fit", *START, "--model.policy", "ProjectorOnli"],
        ["no policy 'ProjectorOnli'", 'Did you mean "ProjectorOnly"'],
    ),
    "module": (
        ["fit", *START, "--data", "my_dat.Leaves"],
        ["no module 'my_dat'", "my_dat.py must be in"],
    ),
    "class of a module": (
        ["fit", *START, "--data", "my_data.Leavs"],
        ["my_data.py has no class 'Leavs'", 'Did you mean "Leaves"'],
    ),
}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(tmp_path)


def write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_answered_in_a_sentence(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, expected = MISTAKES[case]
    monkeypatch.setattr("lightning_mllm.cli.commands.command.Command.run", forbidden)

    message = refusal(capsys, arguments)

    assert message.startswith("error: ")
    assert all(part in message for part in expected), message
    *answer, last = message.splitlines()
    assert len(answer) <= 2 and last.startswith("For all options: lightning")


def forbidden(*_: Any) -> None:
    raise AssertionError("the command runs")


def test_no_mistake_waits_for_an_import(tmp_path: Path) -> None:
    program = f"""
import sys
from lightning_mllm.cli.main import main
for arguments in {[arguments for arguments, _ in MISTAKES.values()]!r}:
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 2, (ended.code, arguments)
print(*(name for name in {set(HEAVY) - {"yaml"}!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert done.stderr.splitlines()[-1] == ""


# ---- what is right is never refused --------------------------------------------------------------


def commands_of_shipped_configs() -> Iterator[tuple[str, str]]:
    """Yield each shipped config that can be given to a command, and the command."""
    others = {"analysis": "analyze", "studies": "study", "runs": "analyze"}
    for name in sorted(shipped_yaml()):
        command = others.get(name.partition("/")[0], "fit")
        if "\nanalysis:" in (CONFIGS / name).read_text(encoding="utf-8") and command != "study":
            command = "analyze"
        if command != "study" or name.endswith("/study.yaml"):
            yield name, "tiny" if name.endswith("0_start.yaml") else command


@pytest.mark.parametrize(("name", "command"), [*commands_of_shipped_configs()])
def test_a_shipped_config_passes(name: str, command: str) -> None:
    before = [*MODEL, *DATA] if command in ("fit", "analyze") else []
    analysis = ["--analysis", "AnswerLens"] if command == "analyze" else []

    check_early(command, [*before, "--config", str(CONFIGS / name), *analysis])


RIGHT = {
    "a right callback": ["fit", *START, "--trainer.callbacks", "ProbeEachEpoch"],
    "one of Lightning's": ["fit", *START, "--trainer.callbacks+=EarlyStopping"],
    "with its module": ["fit", *START, "--trainer.callbacks", "lightning.pytorch.callbacks.Timer"],
    "a list": ["fit", *START, "--trainer.callbacks", "[{class_path: Timer}, FreezeAudit]"],
    "a config in place of a file": ["fit", "--config", "{model: {checkpoint: x}}", *DATA],
    "a section in a file": ["fit", *MODEL, "--data", "digits.yaml"],
    "a negative number": ["fit", *START, "--trainer.max_epochs", "-1"],
    "a flag": ["fit", "--print_config", "--model.checkpoint=x"],
    "help": ["fit", "--help"],
    "help of a class": ["fit", "--data.help", "Digitz"],
    "preset after data": [
        *("fit", *MODEL, "--config", "digits.yaml", "--config", "preset.yaml"),
        "--data.init_args.batch_size=2",
    ],
    "words that are values": [
        *("fit", *START, "--trainer.max_epochs", "null", "--trainer.devices", "auto"),
        *("--data.init_args.geometry=crop", "--trainer.gradient_clip_val=inf"),
    ],
    "null": ["export", *MODEL, "--data", "null", "--output", "x"],
    "a class of one's own": ["fit", *MODEL, "--data", "my_data.Leaves"],
    "its callback, by its short name": [
        *("fit", *MODEL, "--data", "my_data.Leaves", "--trainer.callbacks", "Mine")
    ],
    "pictures in place of data": ["predict", *MODEL, "--images", "folder"],
    "several classes": [
        *("predict", *MODEL, "--classes", "circle", "red fox", "--images", "folder"),
    ],
    "a run that goes on": ["fit", "--resume", "runs/a"],
    "a checkpoint, or the folder of its run": [
        *("test", *START, "--ckpt_path", "gone.ckpt", "--ckpt_path", "runs/a"),
    ],
    "a checkpoint in the environment": ["test", *START, "--ckpt_path", "${oc.env:CHECKPOINT}"],
    "data check with the config of a fit": ["data check", *START, "--all", "-c", "callback.yaml"],
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_may_be_right_is_left_to_the_parser(case: str) -> None:
    command, *arguments = RIGHT[case]

    check_early(command, arguments)


@pytest.fixture(scope="module")
def options_of_commands() -> dict[str, set[str]]:
    """Return the options of each command, from the parsers that will read them."""
    return dict(_options_of_commands())


def _options_of_commands() -> Iterator[tuple[str, set[str]]]:
    class OnlyParser(ModelCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise StopAsyncIteration

    for command in early_checks._MODEL_COMMANDS:
        cli = OnlyParser.__new__(OnlyParser)
        cli._first = command
        if command not in cli.subcommands():
            continue
        with pytest.raises(StopAsyncIteration):
            cli.__init__([command])  # type: ignore[misc]
        parser = cli._subcommand_parsers[command]
        yield command, {action.dest for action in parser._actions}


def test_no_option_has_a_name_that_is_refused(options_of_commands: dict[str, set[str]]) -> None:
    assert {"fit", "analyze", "export"} <= options_of_commands.keys()
    refused = {f"{section}{name}" for section in ("", "model.", "trainer.") for name in OTHER_NAMES}
    for command, options in options_of_commands.items():
        assert not options & refused
        assert not options & early_checks._OF_STUDIES
        for option, commands in early_checks._LACKING.items():
            assert command not in commands or option not in options


def test_names_that_are_suggested_exist(options_of_commands: dict[str, set[str]]) -> None:
    options = options_of_commands["fit"]
    for meant in OTHER_NAMES.values():
        name = re.split(r"[ ,]", meant)[0]
        within = name.startswith(("data.init_args.", "model.policy.", "model.optimizer."))
        assert within or name in options, name
    for command, needed in early_checks._NEEDED.items():
        if command in options_of_commands:
            assert set(needed) <= options_of_commands[command]


def test_the_folder_of_a_run_stands_for_its_last_checkpoint() -> None:
    assert checkpoint_file("runs/a") == Path("runs/a/checkpoints/last.ckpt")
    assert checkpoint_file("runs/a/checkpoints/last.ckpt") == checkpoint_file("runs/a")
