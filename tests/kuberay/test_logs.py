"""One command gathers an execution's lines from all pods; a stand-in for kubectl knows two pods."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kuberay.rendering import ROOT

ID = "exec_20250101_ab"
KUBECTL = """#!/bin/sh
# kubectl -n NAMESPACE get pods … | kubectl -n NAMESPACE exec POD -c CONTAINER -- COMMAND…
test "$1 $2" = "-n earth2serve" || exit 2
case $3 in
get) printf 'head ray-head\\ngone ray-worker\\nworker ray-worker\\n' ;;
exec)
    pod=$4
    test "$5 $6 $7" = "-c ray-head --" || test "$5 $6 $7" = "-c ray-worker --" || exit 2
    shift 7
    RAY_TMPDIR=$PODS/$pod exec "$@" ;;
esac
"""


def line(second: int, message: str) -> str:
    return f"INFO 2025-01-01 00:00:{second:02},000 earth2serve_FCN3 x1 -- {message}\n"


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    """Ray's folder of each existing pod."""
    for name in ("head", "worker"):
        (tmp_path / name / "session_latest" / "logs" / "serve").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(KUBECTL)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def run(pods: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{pods / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "config" / "kuberay" / "logs.sh", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PODS": str(pods), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def write(pods: Path, pod: str, text: str) -> None:
    logs = pods / pod / "session_latest" / "logs" / "serve"
    (logs / "replica_earth2serve_FCN3_x1.log").write_text(text)


def test_lines_of_all_pods_are_in_order_of_time(pods: Path) -> None:
    trace = "Traceback (most recent call last):\n  File x\nRuntimeError: broken\n"
    write(pods, "head", line(1, f"{ID}: one") + line(4, f"{ID}: four"))
    write(pods, "worker", line(2, f"{ID}: two") + trace + line(3, "of no execution"))
    done = run(pods, ID)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(" earth2serve_FCN3 x1", "") == (
        f"2025-01-01 00:00:01,000 INFO {ID}: one\n"
        f"2025-01-01 00:00:02,000 INFO {ID}: two\n{trace}"
        f"2025-01-01 00:00:04,000 INFO {ID}: four\n"
    )


def test_it_fails_if_no_pod_has_a_line(pods: Path) -> None:
    done = run(pods, ID)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no pod of earth2serve has a line of {ID}" in done.stderr


def test_an_execution_must_be_named(pods: Path) -> None:
    done = run(pods)
    assert done.returncode != 0 and "which execution?" in done.stderr
