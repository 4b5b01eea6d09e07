"""Result files on disk."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from serve_app.files.paths import ResultsUnavailable, open_below, translate_os_errors
from serve_app.files.preconditions import Validators


class DiskFile:
    """An open file, independent of what happens to its name; messages name the client's path."""

    read_ahead = 0
    reads_are_cheap = True

    def __init__(self, file: FileIO, relative: str) -> None:
        self._file = file
        self._relative = relative
        status = os.fstat(file.fileno())
        self.size = status.st_size
        self.validators = Validators.of(status)

    def read(self, part: range) -> bytes:
        """Return the bytes of a range.

        ``pread`` uses no shared position, so a thread that a cancelled request left behind cannot
        disturb other reads.
        """
        with translate_os_errors(self._relative):
            content = os.pread(self._file.fileno(), len(part), part.start)
            while len(content) < len(part):  # a call rarely returns less than requested
                more = os.pread(
                    self._file.fileno(), len(part) - len(content), part.start + len(content)
                )
                if not more:
                    raise ResultsUnavailable(f"{self._relative!r} became shorter while it was read")
                content += more
        return content

    def free(self) -> None:
        """Do nothing: opening a file reads none of it."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DiskFolder:
    """The folder of an execution's results, see `serve_app.files.protocols.Folder`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, relative: str, *, whole: bool) -> DiskFile:
        """Open a file; raises as `serve_app.files.paths.open_below` does."""
        return DiskFile(open_below(self._root, relative), relative)


class DiskResults:
    """The results of all executions, see `serve_app.files.protocols.Results`."""

    def __init__(self, results_dir: Path) -> None:
        self._results_dir = results_dir

    def __call__(self, workflow: str, execution_id: str) -> DiskFolder:
        """Return the folder of an execution."""
        return DiskFolder(self._results_dir / workflow / execution_id)
