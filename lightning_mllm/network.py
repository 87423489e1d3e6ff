"""Whether a server can be reached, found out in seconds: services' own clients try for minutes."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit


def is_reachable(url: str, seconds: float = 4) -> bool:
    """Return whether a server answers within some seconds, even if with an error.

    The proxy of the environment is used. The standard library knows no SOCKS proxies, but the
    clients of services do; with a SOCKS proxy the server is taken to be reachable.

    Args:
        url: Address of the server.
        seconds: How long to wait for an answer, including the look-up of the server's name.
    """
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    # the standard library does not know ALL_PROXY
    proxy = proxies.get(parts.scheme, proxies.get("all"))
    if proxy and urllib.request.proxy_bypass(parts.netloc):
        proxy = None
    if proxy and urlsplit(proxy).scheme.startswith("socks"):
        return True
    answers: list[bool] = []

    def ask() -> None:
        answers.append(_answers(url, proxy, seconds))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers == [True]


def _answers(url: str, proxy: str | None, seconds: float) -> bool:
    proxies = dict.fromkeys(("http", "https"), proxy) if proxy else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        opener.open(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except urllib.error.URLError as error:
        # then a server is there; the client decides whether to trust it
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
