"""Progress on a terminal, or in a log."""

from __future__ import annotations

import shutil
from typing import TextIO

BAR_WIDTH = 30


class Display:
    """Shows progress: one line that is rewritten on a terminal, occasional new lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._line_is_open = False
        self._mark: object = None

    def update(self, text: str, mark: object) -> None:
        """Show progress; where lines cannot be rewritten, only when `mark` changes."""
        if self._rewrites:
            columns = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{text[:columns]}")
            self._line_is_open = True
        elif mark != self._mark:
            self._write(f"{text}\n")
        self._mark = mark

    def print(self, text: str) -> None:
        """Print a permanent line."""
        self._write(f"\r\x1b[K{text}\n" if self._line_is_open else f"{text}\n")
        self._line_is_open = False
        self._mark = None

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def bar(percent: int) -> str:
    """Return a progress bar."""
    done = BAR_WIDTH * percent // 100
    return f"[{'#' * done}{'.' * (BAR_WIDTH - done)}] {percent:3d} %"
