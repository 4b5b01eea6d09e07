"""Announces that a starting server is ready, as ``ready: URL``, or why it is not ready yet.

If callers need a token, only ``answering: URL`` is known.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

POLL_S = 0.5
PATIENCE_S = 10.0
"""Time after which a reason is printed; every start is unready for a moment."""

# The server is on this machine, whatever proxy leads to others.
_opener = build_opener(ProxyHandler({}))


class TokenRequired(Exception):
    """The server responds, but reports whether workflows are ready only to callers with a token."""


def announce(
    url: str,
    write: Callable[[str], None],
    *,
    poll_s: float = POLL_S,
    patience_s: float = PATIENCE_S,
) -> threading.Thread:
    """Start a thread that prints when the server is ready, and what delays it for long."""
    thread = threading.Thread(
        target=_watch, args=(url, write, poll_s, patience_s), name="announce", daemon=True
    )
    thread.start()
    return thread


def _watch(url: str, write: Callable[[str], None], poll_s: float, patience_s: float) -> None:
    reason, since, written = "", time.monotonic(), ""
    while True:
        try:
            current = _unready_reason(url)
        except TokenRequired:
            return write(
                f"answering: {url}; GET {url}/readiness with a token shows when models are ready"
            )
        if current is None:
            return write(f"ready: {url}")
        if current != reason:
            reason, since = current, time.monotonic()
        if reason and reason != written and time.monotonic() - since >= patience_s:
            written = reason
            write(f"not ready yet: {reason}")
        time.sleep(poll_s)


def _unready_reason(url: str) -> str | None:
    """Return why the server is not ready; None if it is, empty if the reason is unknown.

    Raises
    ------
    TokenRequired
    """
    try:
        with _opener.open(f"{url}/readiness", timeout=5):
            return None
    except HTTPError as error:
        if error.code == 401:
            raise TokenRequired from None
        try:
            detail = json.loads(error.read())["detail"]
            # With 503, the text is from a proxy: the application is still starting.
            if isinstance(detail, str):
                return detail if error.code < 500 else ""
            workflows = detail["workflows"].values()
            return "; ".join(sorted({state["reason"] for state in workflows if state["reason"]}))
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
    except OSError:
        return ""
