import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from examples.display import Display
from examples.forecast_client import ForecastFailed, describe, follow, submit, wait_until_ready
from examples.server_process import ServerEnded
from serve_app.ports import free_port
from tests.examples.conftest import Start

Answer = tuple[int, dict[str, Any]]


def status(
    state: str, stage: str | None = None, step: int | None = None, **more: Any
) -> dict[str, Any]:
    progress = None
    if step is not None:
        progress = {"progress": f"{step} written", "current_step": step, "total_steps": 36}
    return {"status": state, "stage": stage, "progress": progress, "error_message": None} | more


@contextmanager
def answering(answers: list[Answer]) -> Iterator[tuple[str, list[str]]]:
    """Serve these answers one after another, then the last; yield URL and requested paths."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            code, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "percent", "text"),
    [
        (status("queued"), 0, "queued"),
        (status("running", "initial_conditions"), 0, "initial conditions"),
        (status("running", "inference", 9), 25, "inference: 9 written"),
        (status("pending_results", "package", 36), 100, "package: 36 written"),
    ],
)
def test_progress_is_described(answer: dict[str, Any], percent: int, text: str) -> None:
    assert describe(answer) == (percent, text)


def test_following_requests_changes_since_the_last_one() -> None:
    answers = [
        (200, status("running", "inference", 0, revision=2)),
        (200, status("running", "inference", 18, revision=7)),
        (200, status("completed", "finish", 36, revision=9)),
    ]
    stream = io.StringIO()
    with answering(answers) as (base, requested):
        assert follow(f"{base}/exec_1", Display(stream))["revision"] == 9
    assert [path.rpartition("revision=")[2] for path in requested] == ["0", "2", "7"]
    assert "[###############...............]  50 %  inference: 18 written" in stream.getvalue()


def test_a_failed_forecast_is_reported_with_stage_and_reason() -> None:
    failed = status("failed", "inference", 3, revision=3) | {"error_message": "no such weights"}
    with answering([(200, failed)]) as (base, _):
        with pytest.raises(ForecastFailed, match="failed at stage inference: no such weights"):
            follow(f"{base}/exec_1", Display(io.StringIO()))


def test_a_refused_request_is_reported_with_the_servers_reason() -> None:
    with answering([(422, {"detail": "no disk left"})]) as (base, _):
        with pytest.raises(ForecastFailed, match="422 .*no disk left"):
            submit(base, {})


def test_waiting_ends_when_the_server_has_ended(start: Start) -> None:
    server = start("import sys; sys.exit(3)")
    with pytest.raises(ServerEnded, match="exit code 3"):
        wait_until_ready(server, f"http://127.0.0.1:{free_port()}", Display(io.StringIO()))


def test_waiting_ends_at_the_limit_with_the_servers_reason(start: Start) -> None:
    server = start("import time; time.sleep(60)")
    with answering([(503, {"detail": "fcn3 is still being loaded"})]) as (base, _):
        with pytest.raises(ForecastFailed, match="fcn3 is still being loaded"):
            wait_until_ready(server, base, Display(io.StringIO()), limit_s=0.0)


def test_waiting_ends_when_the_server_is_ready(start: Start) -> None:
    server = start("import time; time.sleep(60)")
    with answering([(503, {"detail": "loading"}), (200, {})]) as (base, _):
        assert wait_until_ready(server, base, Display(io.StringIO())) >= 0.5
