from __future__ import annotations

import socket
import time

import pytest

from lightning_mllm.network import is_reachable
from tests.servers import serving


@pytest.fixture(autouse=True)
def _without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_a_server_that_answers_is_there_whatever_it_says(status: int) -> None:
    with serving(status) as url:
        assert is_reachable(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://no.such.host.invalid"])
def test_a_server_that_is_not_there_is_not_reachable(url: str) -> None:
    assert not is_reachable(url)


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()

        assert not is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)

        assert time.monotonic() - start < 2
