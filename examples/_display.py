"""Progress on a terminal, or in a log."""

from __future__ import annotations

import shutil
from typing import TextIO

BAR_WIDTH = 30


class Display:
    """Shows progress: one line that changes on a terminal, now and then a new line elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._open = False
        self._mark: object = None

    def show(self, text: str, mark: object) -> None:
        """Show what is going on; where lines cannot be rewritten, only if `mark` is a new one."""
        if self._rewrites:
            columns = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{text[:columns]}")
            self._open = True
        elif mark != self._mark:
            self._write(f"{text}\n")
        self._mark = mark

    def say(self, text: str) -> None:
        """Leave a line that stays."""
        self._write(f"\r\x1b[K{text}\n" if self._open else f"{text}\n")
        self._open = False
        self._mark = None

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def bar(percent: int) -> str:
    """Draw a progress bar."""
    done = BAR_WIDTH * percent // 100
    return f"[{'#' * done}{'.' * (BAR_WIDTH - done)}] {percent:3d} %"
