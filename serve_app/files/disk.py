"""Result files on disk, opened for a download."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from serve_app.files.paths import ResultsUnavailable, answering_for, open_below
from serve_app.files.preconditions import Validators


class DiskFile:
    """A file of which the descriptor counts, and not the name.

    Parameters
    ----------
    file : FileIO
    relative : str
        Its path as the client sent it, for messages.
    """

    read_ahead = 0

    def __init__(self, file: FileIO, relative: str) -> None:
        self._file = file
        self._relative = relative
        status = os.fstat(file.fileno())
        self.size = status.st_size
        self.validators = Validators.of(status)

    def read(self, part: range) -> bytes:
        """Read one part whole.

        ``pread`` goes straight to the offset and moves no shared position, so closing the file
        on a thread that a cancelled request left behind harms nobody.
        """
        with answering_for(self._relative):
            chunk = os.pread(self._file.fileno(), len(part), part.start)
            while len(chunk) < len(part):  # one call gives less than asked for only rarely
                more = os.pread(
                    self._file.fileno(), len(part) - len(chunk), part.start + len(chunk)
                )
                if not more:
                    raise ResultsUnavailable(f"{self._relative!r} became shorter while it was read")
                chunk += more
        return chunk

    def close(self) -> None:
        """Close it."""
        self._file.close()


class DiskFolder:
    """The folder of an execution's results, as `serve_app.files.serving.Folder` describes it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, relative: str, *, whole: bool) -> DiskFile:
        """Open a file; raises what `serve_app.files.paths.resolve` raises."""
        file = open_below(self._root, relative)
        try:
            return DiskFile(file, relative)
        except BaseException:
            file.close()
            raise


class DiskResults:
    """The results of all executions, as `serve_app.files.serving.Results` describes them."""

    def __init__(self, results_dir: Path) -> None:
        self._results_dir = results_dir

    def __call__(self, workflow: str, execution_id: str) -> DiskFolder:
        """Give the folder of an execution."""
        return DiskFolder(self._results_dir / workflow / execution_id)
