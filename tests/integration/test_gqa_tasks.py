"""`lightning data gqa-tasks`: from GQA's own files to the tasks of the information-flow study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.cli.main import main
from lightning_mllm.data.datasets.gqa.extraction import RULES
from lightning_mllm.data.datasets.gqa.rows import read_task_rows
from lightning_mllm.testbed import ExamQuestion
from lightning_mllm.testbed.language.gqa import questions_as_gqa
from tests.data.datasets.gqa.test_extraction import asked
from tests.support.command_line import files_below, isolate, refusal


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def questions() -> list[ExamQuestion]:
    """The test-bed's questions of all tasks, every second one in each file, and `scenes.json`."""
    found = [question for task in RULES for question in asked(task, 3)]
    written, scenes = questions_as_gqa(found)
    Path("scenes.json").write_text(json.dumps(scenes))
    for part, name in enumerate(("one.json", "two.json")):
        Path(name).write_text(json.dumps(dict([*written.items()][part::2])))
    return found


def test_every_task_of_all_files_gets_a_file_that_is_read(
    questions: list[ExamQuestion], capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            "data",
            "gqa-tasks",
            "--questions",
            "one.json",
            "two.json",
            "--scenes",
            "scenes.json",
            "--output",
            "out/new",
        ]
    )

    files = [Path("out/new", f"GQA_{task}.csv") for task in RULES]
    *printed, last = capsys.readouterr().out.splitlines()
    assert printed == [str(file) for file in files]
    assert last.startswith("6 tasks; configs/data/gqa.yaml")
    assert files_below(Path("out/new")) == {file.name for file in files}
    read = [row.question_id for file in files for row in read_task_rows(file)]
    assert sorted(read) == sorted(question.id for question in questions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scenes", "absent.json"), "absent.json can't be read as JSON"),
        (("--scenes", "scenes.json", "--outptu", "out"), 'Did you mean "output"?'),
        ((), "scenes"),
    ],
)
def test_what_is_wrong_is_one_message(
    questions: list[ExamQuestion],
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    command = ["data", "gqa-tasks", "--questions", "one.json", "--output", "out", *options]

    assert message in refusal(capsys, command)
    assert not Path("out").exists()
