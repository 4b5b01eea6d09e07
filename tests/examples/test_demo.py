import io
import json
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples import demo
from examples._display import Display, bar
from examples._server_process import Server, ServerEnded, free_port, session
from serve_app.check import check_file
from workflows import WORKFLOWS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_for_every_new_mark() -> None:
    stream = io.StringIO()
    display = Display(stream)
    for percent in (0, 1, 4, 5, 9, 10):
        display.show(f"{percent} %", mark=percent // 5)
    display.say("done")
    assert stream.getvalue() == "0 %\n5 %\n10 %\ndone\n"


def test_a_terminal_gets_one_line_that_changes() -> None:
    stream = Terminal()
    display = Display(stream)
    display.show("1 %", mark=0)
    display.show("2 %", mark=0)
    display.say("done")
    assert stream.getvalue() == "\r\x1b[K1 %\r\x1b[K2 %\r\x1b[Kdone\n"


@pytest.mark.parametrize(("percent", "filled"), [(0, 0), (50, 15), (99, 29), (100, 30)])
def test_the_bar_is_full_at_the_end_only(percent: int, filled: int) -> None:
    assert bar(percent) == f"[{'#' * filled}{'.' * (30 - filled)}] {percent:3d} %"


def status(
    state: str, stage: str | None = None, step: int | None = None, **more: Any
) -> dict[str, Any]:
    progress = None
    if step is not None:
        progress = {"progress": f"{step} written", "current_step": step, "total_steps": 36}
    return {"status": state, "stage": stage, "progress": progress, "error_message": None} | more


@pytest.mark.parametrize(
    ("given", "percent", "text"),
    [
        (status("queued"), 0, "queued"),
        (status("running", "initial_conditions"), 0, "initial conditions"),
        (status("running", "inference", 9), 25, "inference: 9 written"),
        (status("pending_results", "package", 36), 100, "package: 36 written"),
    ],
)
def test_progress_in_words(given: dict[str, Any], percent: int, text: str) -> None:
    assert demo.describe(given) == (percent, text)


def test_the_workflow_takes_the_request() -> None:
    workflow: Any = WORKFLOWS[demo.WORKFLOW]
    plan = workflow().plan(workflow().validate(demo.PARAMETERS))
    assert (len(plan.seeds), plan.n_times, plan.output_format) == (4, 9, "zarr")


def test_the_configuration_differs_in_its_folder_alone(tmp_path: Path) -> None:
    original = demo.CONFIG.read_text()
    file = tmp_path / "demo.yaml"
    file.write_text(demo.configured(original, tmp_path / "da ta"))
    assert check_file(str(file)) == []
    written, wanted = yaml.safe_load(file.read_text()), yaml.safe_load(original)
    assert written["applications"][0]["args"].pop("data_dir") == str(tmp_path / "da ta")
    wanted["applications"][0]["args"].pop("data_dir")
    assert written == wanted


def test_dataset_and_map_are_found_in_the_manifest() -> None:
    files = ["zarr.json", "t2m/zarr.json", "t2m/c.0.0.0.0"]
    paths = [f"exec_1/results.zarr/{name}" for name in files]
    paths += ["exec_1/checksums.sha256", "exec_1/preview.png"]
    manifest = {"output_files": [{"path": path} for path in paths]}
    assert demo.result_paths(manifest, Path("/results")) == (
        Path("/results/exec_1/results.zarr"),
        Path("/results/exec_1/preview.png"),
    )


Answer = tuple[int, dict[str, Any]]


@contextmanager
def answering(answers: list[Answer]) -> Iterator[tuple[str, list[str]]]:
    """Serve these answers one after another, the last one for ever; gives URL and paths asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
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
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_following_asks_from_the_last_change_on() -> None:
    answers = [
        (200, status("running", "inference", 0, revision=2)),
        (200, status("running", "inference", 18, revision=7)),
        (200, status("completed", "finish", 36, revision=9)),
    ]
    stream = io.StringIO()
    with answering(answers) as (base, asked):
        assert demo.follow(base, "exec_1", Display(stream))["revision"] == 9
    assert [path.rpartition("revision=")[2] for path in asked] == ["0", "2", "7"]
    assert "[###############...............]  50 %  inference: 18 written" in stream.getvalue()


def test_a_failed_forecast_names_stage_and_reason() -> None:
    failed = status("failed", "inference", 3, revision=3) | {"error_message": "no such weights"}
    with answering([(200, failed)]) as (base, _):
        with pytest.raises(demo.DemoFailed, match="failed at stage inference: no such weights"):
            demo.follow(base, "exec_1", Display(io.StringIO()))


def test_a_refused_request_gives_the_servers_reason() -> None:
    with answering([(422, {"detail": "no disk left"})]) as (base, _):
        with pytest.raises(demo.DemoFailed, match="422 .*no disk left"):
            demo.submit(base)


Start = Callable[[str], Server]


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a Python program as the server."""
    started = []

    def run(program: str) -> Server:
        command = [sys.executable, "-c", textwrap.dedent(program)]
        started.append(Server(command, {"SAID": "by the demo"}, tmp_path / "server.log"))
        return started[-1]

    yield run
    for server in started:
        server.stop()


def test_a_server_that_ends_is_noticed_at_once_and_its_log_shown(start: Start) -> None:
    server = start("import os, sys; print('no such setting', os.environ['SAID']); sys.exit(3)")
    with pytest.raises(ServerEnded, match="exit code 3"):
        demo.wait_until_ready(server, f"http://127.0.0.1:{free_port()}", Display(io.StringIO()))
    assert server.log_tail() == "no such setting by the demo"


def test_a_server_that_never_gets_ready_is_given_up_with_its_reason(start: Start) -> None:
    server = start("import time; time.sleep(60)")
    with answering([(503, {"detail": "fcn3 is still being loaded"})]) as (base, _):
        with pytest.raises(demo.DemoFailed, match="fcn3 is still being loaded"):
            demo.wait_until_ready(server, base, Display(io.StringIO()), limit_s=0.0)


def test_a_server_that_gets_ready_is_waited_for(start: Start) -> None:
    server = start("import time; time.sleep(60)")
    with answering([(503, {"detail": "loading"}), (200, {})]) as (base, _):
        assert demo.wait_until_ready(server, base, Display(io.StringIO())) >= 0.5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_stopping_leaves_no_process(start: Start, tmp_path: Path) -> None:
    # As HAProxy of a Ray that has ended: it has other parents by then, and ignores interrupts.
    server = start(
        f"""
        import subprocess, sys, time
        stubborn = '''
        import pathlib, signal, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({str(tmp_path / "up")!r}).touch()
        time.sleep(60)
        '''
        import textwrap
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(stubborn)])
        time.sleep(60)
        """
    )
    wait_for(tmp_path / "up")
    leader = server._process.pid
    assert len(session(leader)) == 2
    server.stop(patience_s=0.3)
    assert session(leader) == []


def test_a_server_takes_the_interrupt_even_if_the_demo_runs_in_the_background(
    start: Start, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = start(
            f"""
            import pathlib, time
            pathlib.Path({str(tmp_path / "up")!r}).touch()
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                print("stopped in peace")
            """
        )
        wait_for(tmp_path / "up")
        server.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert server.log_tail() == "stopped in peace"
