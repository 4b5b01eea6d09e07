"""Faults that kill no process: the store is locked or stopped, the clock jumps."""

from __future__ import annotations

import random
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from tests.postgres import PostgresServer

Fault = Callable[[random.Random], str]
"""Causes a fault for a while; returns its kind."""

LONGEST_S = 20.0
"""Restarting a database takes less; operations on the store are retried for a minute."""
JUMPS_S = (-7200, -90, 0, 90, 7200)


def store_locked(*paths: Path) -> Fault:
    """Return a fault that locks SQLite files."""

    def lock(chance: random.Random) -> str:
        seconds = chance.uniform(1, LONGEST_S)
        with ExitStack() as stack:
            for path in paths:
                connection = stack.enter_context(
                    closing(sqlite3.connect(path, timeout=60, isolation_level=None))
                )
                connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
        return "store locked"

    return lock


def store_stopped(server: PostgresServer) -> Fault:
    """Return a fault that stops the database and starts it again."""

    def restart(chance: random.Random) -> str:
        server.stop()
        time.sleep(chance.uniform(0, LONGEST_S))
        server.start()
        return "store stopped"

    return restart


class Clock:
    """A clock for processes that are started with its environment; see ``clock.c``.

    Parameters
    ----------
    folder : Path
        For the library and for the file with the clock's offset.

    Notes
    -----
    With libfaketime, which does the same, Python's ``time.sleep`` fails or waits for hours.
    """

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock"
        self._library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(source)]
        subprocess.run(command, check=True)
        self._offset.write_bytes(struct.pack("q", 0))

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables of the processes."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._offset)}

    def jump(self, chance: random.Random) -> str:
        """Set the clock to another offset from the real time."""
        seconds = chance.choice(JUMPS_S)
        with self._offset.open("r+b") as file:
            file.write(struct.pack("q", seconds))
        return f"clock {seconds:+d} s"
