import signal
import time
from pathlib import Path

import pytest

from examples.server_process import ServerEnded, session
from tests.examples.conftest import Start


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_has_ended_is_reported_with_its_exit_code(start: Start) -> None:
    server = start("import os, sys; print('no such setting', os.environ['FROM']); sys.exit(3)")
    deadline = time.monotonic() + 20
    with pytest.raises(ServerEnded, match="exit code 3"):
        while time.monotonic() < deadline:
            server.check()
            time.sleep(0.01)
    assert server.log_tail() == "no such setting the demo"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_stopping_leaves_no_process(start: Start, tmp_path: Path) -> None:
    # Like HAProxy after its Ray has ended: its parent has changed, and it ignores interrupts.
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
    assert len(session(server.pid)) == 2
    server.stop(grace_s=0.3)
    assert session(server.pid) == []


def test_a_server_can_be_interrupted_when_started_from_a_background_job(
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
                print("interrupted")
            """
        )
        wait_for(tmp_path / "up")
        server.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert server.log_tail() == "interrupted"
