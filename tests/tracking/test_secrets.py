from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.tracking.secrets import mask_secrets

MASK = "********"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hf_token": "x"}, {"hf_token": MASK}),
        ({"token": "${oc.env:MINE}"}, {"token": "${oc.env:MINE}"}),
        ({"token": "${oc.env:MINE,x}"}, {"token": MASK}),
        ({"API_KEY": "x", "apikey": "x"}, {"API_KEY": MASK, "apikey": MASK}),
        ({"db_password": "x", "client_secret": "x"}, {"db_password": MASK, "client_secret": MASK}),
        ({"credentials": {"user": "x", "port": 1}}, {"credentials": {"user": MASK, "port": 1}}),
        ({"secrets": ["x", "y"]}, {"secrets": [MASK, MASK]}),
        ({"max_new_tokens": 8, "tokens_per_pass": 4}, {"max_new_tokens": 8, "tokens_per_pass": 4}),
        ({"tokenizer": "x", "tokenisation": "y"}, {"tokenizer": "x", "tokenisation": "y"}),
        ({"token": None, "use_token": True}, {"token": None, "use_token": True}),
        ({"a": [{"token": "x"}], "b": Path("p")}, {"a": [{"token": MASK}], "b": Path("p")}),
    ],
)
def test_text_under_a_secret_key_is_masked(config: Any, expected: Any) -> None:
    assert mask_secrets(config) == expected


def test_the_value_of_a_secret_variable_is_masked_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_API_KEY", "0123456789")
    monkeypatch.setenv("EMPTY_TOKEN", "")

    assert mask_secrets({"url": "https://u:0123456789@host", "x": "012"}) == {
        "url": MASK,
        "x": "012",
    }


def test_the_config_itself_is_left_as_it_is() -> None:
    config = {"inner": {"token": "x"}}
    mask_secrets(config)

    assert config == {"inner": {"token": "x"}}
