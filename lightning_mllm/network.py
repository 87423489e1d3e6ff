"""Whether a server can be reached, found out in seconds: the clients of services try on for minutes."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request


def is_reachable(url: str, seconds: float = 4) -> bool:
    """Return whether a server answers within some seconds, through the proxy of the environment, be it with an error.

    Args:
        url: Of the server.
        seconds: How long it is waited for, the look-up of its name included.
    """
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(_answers(url, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return answers == [True]


def _answers(url: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody is there; whom to trust, the client knows better
    except OSError:
        return False
    return True
