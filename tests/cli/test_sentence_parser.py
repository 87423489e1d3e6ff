"""What a mistake is answered with where argparse or jsonargparse find it, and Ctrl-C."""

from __future__ import annotations

import pytest

from lightning_mllm.cli.explanations import explain
from lightning_mllm.cli.main import main
from tests.support.command_line import refusal


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["completion", "fsh"], ["there is no 'fsh': choose bash, zsh, fish", '"fish"']),
        (["configs"], ["required: DIR"]),
        (["configs", "x", "--overwrit"], ["--overwrit", 'Did you mean "--overwrite"']),
        (["compare", "a", "b", "--outptu", "x"], ['Did you mean "--output"']),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, arguments)

    assert message.startswith("error: ") and "usage" not in message
    assert all(part in message for part in expected), message


def test_ctrl_c_ends_a_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_mllm.cli.commands.command.Command.run", press)
    with pytest.raises(SystemExit) as ended:
        main(["tiny", "folder"])

    assert ended.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_word_in_place_of_a_mapping_is_answered_with_its_fields() -> None:
    said = """Parser key "points":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning_mllm.probing.features.points.Point'>, collections.abc.Sequence]
  Errors:
    - Expected a dot import path string: layer99
    - Expected a <class 'collections.abc.Sequence'>
  Given value type: <class 'str'>
  Given value: layer99"""

    assert explain(said, "lightning extract", []) == (
        "points takes {place: ..., layer: ..., pooling: ..., cells: ...}, not 'layer99'."
    )


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ('\n        Did you mean "columns.image"?', '\nDid you mean "columns.image"?'),
        ("", ""),
    ],
)
def test_an_unknown_field_of_an_option_is_answered_in_a_sentence(hint: str, expected: str) -> None:
    said = f"""Parser key "data":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning_mllm.data.loading.datamodule.MLLMDataModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_mllm.data.HFDataset':
        unrecognized arguments: --columns.img=my photo{hint}
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='columns.img', val='my photo')"""

    assert explain(said, "lightning data check", []) == (
        f"HFDataset has no option 'columns.img'.{expected}"
    )


def test_an_optimiser_that_is_not_there_is_answered_in_a_sentence() -> None:
    said = """Parser key "model.optimizer":

  - Expected a path but torch.optim.AdamX either not accessible or invalid
  - Type collections.abc.Callable[[typing.Any, float], torch.optim.optimizer.Optimizer] expects a \
function or a callable class: module 'torch.optim' has no attribute 'AdamX'. Got value: x"""

    assert explain(said, "lightning fit", []).startswith(
        "model.optimizer: the module torch.optim has no class 'AdamX'.\nDid you mean \"Adam"
    )


def test_a_mapping_is_named_among_what_an_option_takes() -> None:
    said = """Parser key "model.device_map":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal['auto'], dict[str, int], <class 'NoneType'>]
  Errors:
  Given value type: <class 'str'>
  Given value: autos"""

    assert explain(said, "lightning analyze", []) == (
        "model.device_map takes 'auto', or a mapping, or null, not 'autos'.\nDid you mean \"auto\"?"
    )


def test_options_before_the_name_of_their_class_are_answered_with_the_names() -> None:
    said = """Parser key "prompt":
  Does not validate against any of the Union subtypes
  Errors:
    - Expected an instantiatable class, but lightning_mllm.data.Prompt is abstract
    - Expected a <class 'NoneType'>
  Given value: NestedArg(key='listed', val='5')"""

    inner = explain(said, "lightning fit", [])
    outer = explain(
        f"""Parser key "data":
  Errors:
    - Problem with given class_path 'lightning_mllm.data.ImageFolder':
        {inner}
    - Expected a <class 'NoneType'>""",
        "lightning fit",
        [],
    )

    assert outer.startswith("data.init_args.prompt takes the name of a class before its options: ")
    assert "ClassificationPrompt" in outer
