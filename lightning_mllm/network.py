"""Whether a server can be reached, found out in seconds: the clients of services try on for minutes."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit


def is_reachable(url: str, seconds: float = 4) -> bool:
    """Return whether a server answers within some seconds, through the proxy of the environment, be it with an error.

    Behind a SOCKS proxy, which clients of services can use and the standard library can't, it is taken to.

    Args:
        url: Of the server.
        seconds: How long it is waited for, the look-up of its name included.
    """
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(
        parts.scheme, proxies.get("all")
    )  # the standard library does not know ALL_PROXY
    if proxy and urllib.request.proxy_bypass(parts.netloc):
        proxy = None
    if proxy and urlsplit(proxy).scheme.startswith("socks"):
        return True
    answers: list[bool] = []
    asking = threading.Thread(
        target=lambda: answers.append(_answers(url, proxy, seconds)), daemon=True
    )
    asking.start()
    asking.join(seconds)
    return answers == [True]


def _answers(url: str, proxy: str | None, seconds: float) -> bool:
    proxies = dict.fromkeys(("http", "https"), proxy) if proxy else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        opener.open(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except urllib.error.URLError as error:
        return isinstance(
            error.reason, ssl.SSLError
        )  # somebody is there; whom to trust, the client knows better
    except OSError:
        return False
    return True
