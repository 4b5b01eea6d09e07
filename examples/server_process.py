"""A server as a child process that leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_LINES = 30
"""Lines of the log that are shown after an error."""


class ServerEnded(Exception):
    """The server process has ended."""


class ServerProcess:
    """A server in a session of its own, so that all of its processes can be found and ended.

    Parameters
    ----------
    command : sequence of str
    environment : mapping
        Variables that are set in addition to those of this process.
    log : Path
        File for its output.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_accept_interrupts,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise if the server has ended.

        Raises
        ------
        ServerEnded
        """
        code = self._process.poll()
        if code is not None:
            raise ServerEnded(f"the server has ended with exit code {code}")

    def log_tail(self) -> str:
        """Return the last lines of the server's output."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def stop(self, grace_s: float = 30.0) -> None:
        """Interrupt the server as Ctrl-C does, then end what remains of it.

        Ctrl-C shortens the wait.

        Parameters
        ----------
        grace_s : float
            Time for the server to stop by itself.
        """
        rest_s = min(grace_s, 5.0)
        for number, limit_s in (
            (signal.SIGINT, grace_s),
            (signal.SIGTERM, rest_s),
            (signal.SIGKILL, rest_s),
        ):
            try:
                if self._ended_by(number, limit_s):
                    return
            except KeyboardInterrupt:
                continue

    def _ended_by(self, number: signal.Signals, limit_s: float) -> bool:
        """Send a signal and wait; an interrupt goes to the server alone, which ends the rest."""
        running = self._process.poll() is None
        targets = session(self.pid)
        if number == signal.SIGINT:
            targets = [self.pid] if running else []
        for pid in targets:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + (limit_s if running else min(limit_s, 5.0))
        while session(self.pid):
            time.sleep(0.1)
            if self._process.poll() is not None and running:
                running = False
                # Ray's processes follow within a second or two; HAProxy's may stay forever.
                deadline = min(deadline, time.monotonic() + 5.0)
            if time.monotonic() > deadline:
                return False
        return True


def _accept_interrupts() -> None:
    # A shell starts background jobs with interrupts ignored, and child processes inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def session(leader: int) -> list[int]:
    """Return the living processes of a session; without /proc, only its leader."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(leader, 0)
        except ProcessLookupError:
            return []
        return [leader]
    found = []
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        try:
            # "pid (name) state parent group session ..."; the name may contain anything.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and int(fields[3]) == leader:
            found.append(pid)
    return found
