"""What is said on stderr while a command runs."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import warnings

import pytest
from transformers.utils.logging import is_progress_bar_enabled

from lightning_mllm import messages
from lightning_mllm.messages import show_messages

OURS = logging.getLogger("lightning_mllm.somewhere")
THEIRS = logging.getLogger("lightning.pytorch.somewhere")


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_our_messages_are_sentences_and_warnings_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_messages():
        OURS.info("Running %s", "cell-1")
        OURS.warning("2 of 9 pictures are left out.")

    assert said(capsys) == ["Running cell-1", "warning: 2 of 9 pictures are left out."]


def test_of_libraries_only_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with show_messages():
        THEIRS.info("Consider our product.")
        THEIRS.warning("The loss is a list.")

    assert said(capsys) == ["warning: The loss is a list."]


def test_a_message_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with show_messages(), show_messages():
        for _ in range(3):
            OURS.warning("The cache is on a slow disk.")

    assert said(capsys) == ["warning: The cache is on a slow disk."]


@pytest.mark.filterwarnings("default")
def test_a_warning_of_python_is_shown_without_file_and_line_unless_it_is_noise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_messages():
        warnings.warn("The 'train_dataloader' does not have many workers which ...", stacklevel=1)
        warnings.warn("OptimState8bit does not implement _stable_hash_for_caching.", stacklevel=1)
        warnings.warn("This GPU is not supported.", stacklevel=1)

    assert said(capsys) == ["warning: This GPU is not supported."]


def test_other_processes_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with show_messages():
        OURS.warning("The batch is small.")

    assert not said(capsys)


def test_on_a_terminal_lines_break_between_words_and_paths_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    path = "runs/" + "a-long-name/" * 9
    with show_messages():
        OURS.info(
            "All of them are listed in this file, which is in the folder of the run: %s", path
        )

    lines = said(capsys)
    assert path in lines
    assert all(len(line) <= 80 for line in lines if line != path)


def test_afterwards_logging_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    root, library = logging.getLogger(), logging.getLogger("transformers")
    before = (list(root.handlers), list(library.handlers), library.propagate, warnings.showwarning)
    with pytest.raises(ValueError, match="in the block"), show_messages():
        raise ValueError("in the block")

    after = (list(root.handlers), list(library.handlers), library.propagate, warnings.showwarning)
    assert after == before
    assert not any(isinstance(each, messages._MessageHandler) for each in root.handlers)


def test_a_script_shows_messages_to_its_end_without_a_block(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = show_messages()
    try:
        show_messages()
        gc.collect()
        OURS.info("This run goes on.")
        THEIRS.info("Consider our product.")
    finally:
        shown.close()
    OURS.info("It is over.")

    assert said(capsys) == ["This run goes on."]


def test_off_a_terminal_no_bar_of_a_library_is_shown_in_the_block() -> None:
    before = is_progress_bar_enabled()
    with show_messages():
        assert not is_progress_bar_enabled()
    assert is_progress_bar_enabled() == before


def test_importing_the_package_installs_no_handler() -> None:
    code = (
        "import logging, lightning_mllm, lightning_mllm.progress; "
        "ours = logging.getLogger('lightning_mllm'); "
        "raise SystemExit(bool(ours.handlers or logging.getLogger().handlers or ours.level))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_installed_torchao_says_nothing_of_kernels_that_can_not_run_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_messages():
        logging.getLogger("torchao.kernels").warning("Failed to load a library")
    assert capsys.readouterr().err == ""
