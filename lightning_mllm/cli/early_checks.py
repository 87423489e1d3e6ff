"""Mistakes that arguments and config files show, answered before Lightning is imported.

Only what the full parser would refuse, too, is refused here; what can't be judged without importing
classes is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_mllm.cli.class_index import BASES, explain_class, subclass_names
from lightning_mllm.cli.early_optimizer import check_early_optimizer
from lightning_mllm.cli.given import Given, describe_place, names_file, read_given
from lightning_mllm.cli.other_names import OTHER_NAMES
from lightning_mllm.cli.resumed_fit import checkpoint_file, resumed_fit_arguments
from lightning_mllm.cli.stages import check_stages
from lightning_mllm.cli.value_checks import check_option_name, check_value
from lightning_mllm.errors import ConfigError, did_you_mean

_FLAGS = {"-h", "--help", "--print_config", "--dry-run"}
_MODEL_COMMANDS = ("fit", "validate", "test", "predict", "extract", "analyze", "export", "bank")
# command -> what it can't do without
_NEEDED = {
    **dict.fromkeys(_MODEL_COMMANDS[:4], ("model.checkpoint", "data")),
    "analyze": ("model.checkpoint", "data", "analysis"),
    "extract": ("model.checkpoint", "data", "output"),
    **dict.fromkeys(("export", "bank"), ("model.checkpoint", "output")),
    "data check": ("data",),
}
_EXAMPLES = {
    "model.checkpoint": (
        "which model is meant",
        "--model.checkpoint llava-hf/llava-1.5-7b-hf, or --config configs/model/llava-1.5-7b.yaml",
    ),
    "data": (
        "which data are used",
        "--data ImageFolder --data.init_args.root photos, or --config configs/data/digits.yaml",
    ),
    "output": ("where the files go", "--output my_folder"),
    "analysis": (
        "what is analysed",
        "--analysis AnswerLens, or --config configs/analysis/information_flow.yaml",
    ),
}
_INSTEAD = {"data": "images"}  # the option that makes one unnecessary
# an option that only some commands have -> those that lack it
_LACKING = {
    "analysis": tuple(set(_MODEL_COMMANDS) - {"analyze"}),
    "split": ("fit", "validate", "test", "export"),
}
_OF_STUDIES = {"cells", "checkpoints", "domains", "jobs", "kind", "presets", "resamples"}
_OF_RUNS = {"checkpointing", "data", "model", "trainer"}


def check_early(command: str, arguments: Sequence[str]) -> None:
    """Refuse mistakes that can be seen without importing what the command needs.

    Raises:
        ConfigError: There is one.
    """
    if any(argument in ("-h", "--help") or ".help" in argument for argument in arguments):
        return
    if command == "fit":
        arguments = resumed_fit_arguments(arguments)
    given = read_given([each for each in arguments if each.partition("=")[0] not in _FLAGS])
    for each in given:
        check_stages(each.value, each.where)
        _check_kind_of_config(command, each)
    if command in _MODEL_COMMANDS:
        for each in given:
            _check_place(command, each)
            _check_option(each)
    elif command == "data check":  # reads nothing else of a run's config
        given = [each for each in given if each.option.partition(".")[0] == "data"]
    else:
        return
    _check_order(given)
    _check_classes(given)
    check_early_optimizer(given)
    own_data = any(_is_own_class(each) and each.option == "data" for each in given)
    for each in given:
        if not own_data or not each.option.startswith("data."):
            check_value(each.option, each.value, each.where)
    printed = any(argument.startswith("--print_config") for argument in arguments)
    if not printed:
        _check_needed(command, given)
        _check_training_checkpoint(given)


def _check_place(command: str, each: Given) -> None:
    """Refuse words that belong to no option, and what only other commands or studies take."""
    if not each.key:
        is_config = names_file(each.value) or Path(str(each.value)).is_file()
        way_out = f"Write --config {each.value}." if is_config else "Options begin with `--`."
        raise ConfigError(f"{each.value!r} belongs to no option. {way_out}")
    option = each.option.partition(".")[0]
    if command in (lacking := _LACKING.get(option, ())):
        having = [f"`lightning {name}`" for name in _MODEL_COMMANDS if name not in lacking]
        raise ConfigError(
            f"{each.where} sets {option}, which `lightning {command}` does not have: it is for "
            f"{' and '.join(having)}."
        )


def _check_kind_of_config(command: str, each: Given) -> None:
    """Refuse the config of a study for a run, and that of a run for a study."""
    option = each.option.partition(".")[0]
    if option in _OF_STUDIES and command in _NEEDED:
        raise ConfigError(
            f"{each.where} is for a study (it sets {option}): `lightning study --config ...` runs "
            "it."
        )
    if option in _OF_RUNS and command == "study":
        raise ConfigError(
            f"{each.where} is for a single run (it sets {option}): `lightning fit --config ...` "
            "runs it. A study takes a file such as configs/studies/projection_testbed/study.yaml."
        )


def _check_option(each: Given) -> None:
    """Refuse misspelt options, and the names that other programs have for ours."""
    section, _, name = each.option.rpartition(".")
    if section in ("", "model", "trainer") and name in OTHER_NAMES:
        place = describe_place(each.where, each.option)
        raise ConfigError(
            f"{place}there is no option {each.option}. Here it is {OTHER_NAMES[name]}."
        )
    check_option_name(each.option, each.where)


def _check_order(given: Sequence[Given]) -> None:
    """Refuse options of a dataset that come before the dataset, as those of a preset."""
    chosen = next((each for each in given if _chooses(each, "data")), None)
    first = next((each for each in given if each.option.startswith("data.")), None)
    if chosen is not None and first is not None and first.place < chosen.place:
        options = [option for option in (first.where, chosen.where) if option.startswith("-")]
        before, after = (
            where if where in options else f"--config {where}"
            for where in (chosen.where, first.where)
        )
        raise ConfigError(
            f"{first.where} sets {first.option} before {chosen.where} says which data it is for. "
            f"Swap them: {before} first, then {after}."
        )


def _chooses(each: Given, option: str) -> bool:
    return each.option == option and each.value is not None


def _check_classes(given: Sequence[Given]) -> None:
    own_modules = [each.value for each in given if _is_own_class(each)]
    for each in given:
        if each.option not in BASES or not isinstance(each.value, str) or names_file(each.value):
            continue
        if _is_own_class(each):
            _check_own_class(each)
        elif not own_modules and re.fullmatch(r"(lightning[\w.]*\.)?[A-Z]\w*", each.value):
            short = each.value.rpartition(".")[2]
            if short not in subclass_names(BASES[each.option][0]):
                raise ConfigError(f"{each.where}: {explain_class(each.option, each.value)}")


def _is_own_class(each: Given) -> bool:
    """Return whether a value names a class outside of this package and Lightning."""
    is_name = isinstance(each.value, str) and re.fullmatch(r"\w+(\.\w+)+", each.value)
    is_class = each.option in BASES or each.key.endswith("class_path")
    known = ("lightning_mllm", "lightning", "torch", "pytorch_lightning")
    return bool(is_name) and is_class and each.value.partition(".")[0] not in known


def _check_own_class(each: Given) -> None:
    """Refuse a class of the user's whose module, or whose name in it, is not there."""
    top, _, rest = each.value.partition(".")
    module, _, name = each.value.rpartition(".")
    if top == "__main__":
        return
    spec = find_spec(top)
    if spec is None:
        raise ConfigError(
            f"{each.where}: there is no module {top!r} for {each.option} {each.value}. Its file "
            f"{top}.py must be in {Path.cwd()}, or installed."
        )
    if module != top or spec.origin is None or not spec.origin.endswith(".py"):
        return
    text = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    is_dynamic = re.search(r"import \*|__getattr__|globals\(|setattr|exec\(", text)
    if not is_dynamic and not re.search(rf"\b{name}\b", text):
        classes = re.findall(r"^class (\w+)", text, re.MULTILINE)
        hint = did_you_mean(name, classes) or f" It has {', '.join(classes) or 'no class'}."
        raise ConfigError(f"{each.where}: {spec.origin} has no class {rest!r}.{hint}")


def _check_needed(command: str, given: Sequence[Given]) -> None:
    for needed in _NEEDED[command]:
        section = needed.partition(".")[0]
        if any(
            each.value is not None and each.option in (needed, section, _INSTEAD.get(needed))
            for each in given
        ):
            continue
        what, example = _EXAMPLES[needed]
        preset = next((each for each in given if each.option.startswith(f"{needed}.")), None)
        because = "" if preset is None else f" {preset.where} has only options of it."
        raise ConfigError(
            f"`lightning {command}` needs {needed}: {what}.{because} For example {example}."
        )


def _check_training_checkpoint(given: Sequence[Given]) -> None:
    """Refuse a `ckpt_path` that is neither a file nor the folder of a run; the last one counts."""
    for each in [each for each in given if each.option == "ckpt_path"][-1:]:
        text = str(each.value)
        if "${" in text or text.lower() in ("none", "null", ""):
            continue
        if not checkpoint_file(text).is_file():
            raise ConfigError(
                f"{each.where}: there is no checkpoint file {text}. Expected e.g. "
                "runs/<name>/checkpoints/last.ckpt, or the folder of a run."
            )
