"""A private PostgreSQL server, which can be stopped and started again."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self


class PostgresServer:
    """An empty server on a Unix socket.

    Parameters
    ----------
    options : str
        For ``initdb``, such as ``--auth``; by default no password is needed.

    Raises
    ------
    FileNotFoundError
        If PostgreSQL's programs are not installed.
    """

    def __init__(self, *options: str) -> None:
        # The newest one; those on the PATH may be wrappers for other purposes.
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"), reverse=True)
        control = found[0] if found else shutil.which("pg_ctl")
        if control is None:
            raise FileNotFoundError(
                "PostgreSQL's pg_ctl is neither in /usr/lib/postgresql nor on the PATH"
            )
        self._control = control
        self._options = " ".join(options) or "--auth=trust"
        # Not pytest's own folder: only root can enter it, and the path of a socket must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="e2s-pg-", dir="/tmp"))
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {}
        if not os.getuid():
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self._folder, "postgres", "postgres")
        self.url = f"postgresql+psycopg://postgres@/postgres?host={self._folder}"

    def __enter__(self) -> Self:
        how = f"--username=postgres --no-sync {self._options}"
        self._run("init", "-s", "-o", how)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start the server and wait until it responds."""
        settings = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("start", "-w", "-l", f"{self._folder}/server.log", "-o", settings)

    def stop(self) -> None:
        """Stop the server immediately; clients lose their connections."""
        self._run("stop", "-m", "immediate")

    def _run(self, action: str, *arguments: str) -> None:
        log = self._folder / "command.log"
        with log.open("w") as output:
            # A file, since the server would keep a pipe open.
            done = subprocess.run(
                [self._control, action, "-D", f"{self._folder}/data", *arguments],
                cwd=self._folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                **self._user,
            )
        assert done.returncode == 0, log.read_text()
