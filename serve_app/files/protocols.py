"""Result files as HTTP responses see them, wherever they are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from serve_app.files.preconditions import Validators


class OpenedFile(Protocol):
    """An open file: reads return its state when it was opened, or fail."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def validators(self) -> Validators:
        """What distinguishes this state of the file from others."""

    @property
    def read_ahead(self) -> int:
        """Number of chunks to read while one is sent."""

    @property
    def reads_are_cheap(self) -> bool:
        """Whether two reads take no longer than one of both."""

    def read(self, part: range) -> bytes:
        """Return the bytes of a range; raises ResultsUnavailable if they no longer exist."""

    def free(self) -> None:
        """Drop what was read when the file was opened, for which there is no memory."""

    def close(self) -> None:
        """Close the file and keep none of it; a read in another thread is not disturbed."""


class Folder(Protocol):
    """An execution's results; see `serve_app.files.disk` and `serve_app.files.blob`."""

    def open(self, relative: str, *, whole: bool) -> OpenedFile:
        """Open the file that a client's path names; see `serve_app.files.paths` for the errors.

        Parameters
        ----------
        relative : str
            Path below it as the client sent it, percent-decoded once.
        whole : bool
            Whether the whole file will be read.
        """


Results = Callable[[str, str], Folder]
"""Returns the folder of an execution, given its workflow and id."""
