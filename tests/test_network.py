from __future__ import annotations

import socket
import time

import pytest

from lightning_mllm.network import is_reachable
from tests.support.servers import serving


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


@pytest.mark.parametrize("name", ["https_proxy", "all_proxy"])
def test_what_lies_behind_a_socks_proxy_is_left_to_the_clients_which_can_use_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "socks5h://127.0.0.1:9")

    assert is_reachable("https://no.such.host.invalid")

    monkeypatch.setenv("no_proxy", "no.such.host.invalid")
    assert not is_reachable("https://no.such.host.invalid")


def test_a_proxy_for_all_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(each, raising=False)
    with serving(403) as proxy:
        monkeypatch.setenv("all_proxy", proxy)

        assert is_reachable("http://no.such.host.invalid")
