"""Python programs that stand in for the server."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.server_process import ServerProcess

Start = Callable[[str], ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a Python program as the server; it is stopped after the test."""
    started = []

    def run(program: str) -> ServerProcess:
        command = [sys.executable, "-c", textwrap.dedent(program)]
        started.append(ServerProcess(command, {"FROM": "the demo"}, tmp_path / "server.log"))
        return started[-1]

    yield run
    for server in started:
        server.stop()
