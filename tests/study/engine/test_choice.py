"""Which study a command line is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.study import AlignmentCommand, ProjectionCommand, study_class


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "tasks: {a: [b]}\n",
            r"kind 'projection' has no option 'tasks'\. "
            r"A study of kind 'alignment' has it: set kind",
        ),
        (
            "kind: alignment\ndomains: {}\n",
            r"kind 'alignment' has no option 'domains'\. A study of kind 'projection' has it",
        ),
        (
            "kind: alignment\nreadngs: [a]\n",
            r"kind 'alignment' has no option 'readngs'\.\nDid you mean .readings.\?",
        ),
        (
            "kind: alignment\nqqqqqq: 1\n",
            r"kind 'alignment' has no option 'qqqqqq'\. It has name, root, .*checkpoints",
        ),
    ],
)
def test_an_option_of_no_study_or_of_the_other_kind_is_refused_by_name(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "study.yaml").write_text(content)

    with pytest.raises(ConfigError, match=rf"study\.yaml: a study of {message}"):
        study_class(["--config", str(tmp_path / "study.yaml")])


def test_the_kind_of_a_study_is_that_of_its_last_config_file_or_its_option(tmp_path: Path) -> None:
    files = {
        "a": "kind: alignment\n",
        "p": "kind: projection\n",
        "none": "name: x\n",
        "odd": "kind: oddity\n",
    }
    paths = {}
    for name, content in files.items():
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(content)

    assert study_class([]) is ProjectionCommand
    assert study_class(["--config"]) is ProjectionCommand  # the parser says that a file is missing
    assert study_class(["--config", str(paths["none"])]) is ProjectionCommand
    assert (
        study_class(["--config", str(paths["p"]), f"--config={paths['a']}", "--jobs", "2"])
        is AlignmentCommand
    )
    assert study_class(["--config", str(paths["a"]), "--kind", "projection"]) is ProjectionCommand
    assert (
        study_class(["--config", str(tmp_path / "missing.yaml")]) is ProjectionCommand
    )  # the parser says what is missing
    assert study_class(["--kind", "--help"]) is ProjectionCommand  # the value is missing, too
    assert study_class(["--config", str(paths["a"]), "--kind", "--jobs", "2"]) is AlignmentCommand
    with pytest.raises(
        ConfigError, match=r"no kind 'oddity' of study, only projection and alignment"
    ):
        study_class(["--config", str(paths["odd"])])
