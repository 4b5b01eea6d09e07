"""One Ray cluster with Serve for all processes of a test run, which may run side by side.

The cluster lives in a process of its own, and ends when the last process that used it has ended,
however it ended: each holds a shared lock on a file, and the cluster waits for an exclusive one.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 240.0
NUM_CPUS = 16
"""Replicas reserve fractions of them; they do not exist."""


class Cluster(NamedTuple):
    """Where the cluster can be reached."""

    address: str
    http_port: int
    """Port on 127.0.0.1 on which Serve answers; each application has a route prefix of its own."""


@contextmanager
def joined(folder: Path) -> Iterator[Cluster]:
    """Use the cluster of a folder, which is started by the first process that asks for it.

    Parameters
    ----------
    folder : Path
        The same for all processes of a test run.
    """
    # A cluster that is stopping holds this lock until it has stopped.
    with locked(folder / "users", fcntl.LOCK_SH):
        with locked(folder / "start", fcntl.LOCK_EX):
            if not _description(folder).exists():
                _start(folder)
        yield Cluster(*json.loads(_description(folder).read_text()))


@contextmanager
def locked(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock on a file."""
    # Not inherited: other processes that this one starts must not hold it, too.
    with path.open("a") as file:
        fcntl.flock(file, operation)
        yield


def _description(folder: Path) -> Path:
    return folder / "cluster.json"


def _start(folder: Path) -> None:
    log = folder / "log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches the tests only, which still need the cluster to clean up.
            start_new_session=True,
        )
    deadline = time.monotonic() + START_LIMIT_S
    while not _description(folder).exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def main(folder: Path) -> None:
    """Run the cluster of a folder until nobody uses it."""
    import ray
    from ray import serve

    from serve_app.ports import free_port

    context = ray.init(
        "local", num_cpus=NUM_CPUS, num_gpus=0, include_dashboard=False, log_to_driver=False
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    draft = folder / "draft"
    draft.write_text(json.dumps(Cluster(context.address_info["address"], port)))
    draft.rename(_description(folder))
    with locked(folder / "users", fcntl.LOCK_EX):
        _description(folder).unlink()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]))
