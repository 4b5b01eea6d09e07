"""A client of one workflow that follows an execution and shows its progress."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from examples.display import Display, bar
from examples.server_process import ServerProcess

READY_LIMIT_S = 240.0
STALLED_LIMIT_S = 120.0
"""Time for which a forecast may show no progress."""
LONG_POLL_S = 20

_opener = build_opener(ProxyHandler({}))  # the server is local, whatever the environment says


class ForecastFailed(Exception):
    """The server is not ready, refused the request or did not complete it; text for the user."""


def call(url: str, body: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> Any:
    """Send a request, a POST if there is a body, and return the JSON of the answer.

    Raises
    ------
    HTTPError
        If the server refuses.
    OSError
        If the server cannot be reached.
    """
    request = Request(  # noqa: S310
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} if body is not None else {},
    )
    with _opener.open(request, timeout=timeout_s) as response:
        return json.load(response)


def wait_until_ready(
    server: ServerProcess, base: str, display: Display, limit_s: float = READY_LIMIT_S
) -> float:
    """Wait until every workflow can run; return the seconds it took.

    Raises
    ------
    ServerEnded
    ForecastFailed
        If it takes longer than `limit_s`, with what the server is waiting for.
    """
    started = time.monotonic()
    while True:
        elapsed = time.monotonic() - started
        display.update(f"starting the server: {elapsed:3.0f} s", mark=int(elapsed) // 10)
        server.check()
        try:
            call(f"{base}/readiness", timeout_s=5.0)
            return elapsed
        except HTTPError as error:
            reason = f"/readiness answers {error.code} {_text(error)}"
        except OSError as error:
            reason = str(error.reason if isinstance(error, URLError) else error)
        if elapsed > limit_s:
            raise ForecastFailed(f"the server is not ready after {elapsed:.0f} s: {reason}")
        time.sleep(0.5)


def submit(url: str, parameters: Mapping[str, Any]) -> str:
    """Submit a request to the workflow at `url`; return the execution's id.

    Raises
    ------
    ForecastFailed
        If the server refuses, with its reason.
    """
    try:
        answer = call(url, {"parameters": parameters})
    except HTTPError as error:
        raise ForecastFailed(f"the request was refused: {error.code} {_text(error)}") from None
    return str(answer["execution_id"])


def follow(url: str, display: Display) -> Mapping[str, Any]:
    """Show the progress of the execution at `url` until it completes; return its last status.

    Raises
    ------
    ForecastFailed
        If it ends otherwise, or shows no progress for `STALLED_LIMIT_S`.
    """
    revision = 0
    started = changed_at = time.monotonic()
    while True:
        query = urlencode({"wait": LONG_POLL_S, "revision": revision})
        status: Mapping[str, Any] = call(f"{url}/status?{query}", timeout_s=LONG_POLL_S + 30.0)
        if status["status"] == "completed":
            return status
        if status["status"] in ("failed", "cancelled", "expired"):
            stage = f" at stage {status['stage']}" if status["stage"] else ""
            reason = status["error_message"] or "no reason"
            raise ForecastFailed(f"the forecast {status['status']}{stage}: {reason}")
        if status["revision"] != revision:
            revision, changed_at = status["revision"], time.monotonic()
        elif time.monotonic() - changed_at > STALLED_LIMIT_S:
            raise ForecastFailed(
                f"no progress for {STALLED_LIMIT_S:.0f} s, its status is {status['status']}"
            )
        percent, text = describe(status)
        elapsed = time.monotonic() - started
        display.update(
            f"{bar(percent)}  {text}  {elapsed:.0f} s", mark=(percent // 5, status["stage"])
        )


def describe(status: Mapping[str, Any]) -> tuple[int, str]:
    """Return the progress of an execution: percent, and text."""
    progress = status["progress"]
    stage = (status["stage"] or status["status"]).replace("_", " ")
    if not progress or not progress["total_steps"]:
        return 0, stage
    percent = 100 * progress["current_step"] // progress["total_steps"]
    return percent, f"{stage}: {progress['progress']}"


def _text(error: HTTPError) -> str:
    return error.read().decode("utf-8", "replace")[:500]
