"""Commands without classes of ours answer mistakes in a sentence, too."""

from __future__ import annotations

import pytest

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
