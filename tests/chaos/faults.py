"""Faults that kill nobody: the store is locked or away, the clock jumps."""

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
"""Lets something go wrong for a while; says what."""

LONGEST_S = 20.0
"""A restart of a database takes less; what waits for one is a minute patient."""
JUMPS_S = (-7200, -90, 0, 90, 7200)


def store_locked(*paths: Path) -> Fault:
    """Keep all others from writing to files of SQLite's."""

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


def store_away(server: PostgresServer) -> Fault:
    """End the database, and start it again."""

    def restart(chance: random.Random) -> str:
        server.stop()
        time.sleep(chance.uniform(0, LONGEST_S))
        server.start()
        return "store away"

    return restart


class Clock:
    """The clock that processes see which are started with its environment, see ``clock.c``.

    Parameters
    ----------
    folder : Path
        For the library, and for the file that says how far the clock is off.

    Notes
    -----
    libfaketime does the same, but lets ``time.sleep`` of Python fail or wait for hours.
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
        """What makes processes see it."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._offset)}

    def jump(self, chance: random.Random) -> str:
        """Let it jump to so many seconds ahead of the time, or behind it."""
        seconds = chance.choice(JUMPS_S)
        with self._offset.open("r+b") as file:
            file.write(struct.pack("q", seconds))
        return f"clock {seconds:+d} s off"
