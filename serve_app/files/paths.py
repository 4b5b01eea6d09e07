"""Opens the file that a client's path names, and none outside the results.

::

    Earth2ServeError
    ├── ForbiddenPath        403: leads out of the results
    ├── InvalidPath          400: cannot name a file
    ├── ResultsNotFound      404 (workflows.errors)
    └── ResultsUnavailable   503: exists, but cannot be read now

A file that cannot be read now must not answer 404: to a Zarr reader, a missing chunk is full of
NaN.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from workflows.errors import Earth2ServeError, ResultsNotFound

_MAX_PATH = 4096
_MAX_COMPONENT = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}


class ForbiddenPath(Earth2ServeError):
    """A path leads out of an execution's results."""


class InvalidPath(Earth2ServeError):
    """A path contains control characters, or is too long."""


class ResultsUnavailable(Earth2ServeError):
    """A result file exists but cannot be read now."""


def open_below(root: Path, relative: str) -> FileIO:
    """Open the regular file that a client's path names.

    Parameters
    ----------
    root : Path
        Folder of the execution's results.
    relative : str
        Path below it as the client sent it, percent-decoded once.

    Raises
    ------
    ForbiddenPath
        If the path is absolute, contains ``..`` or a backslash, or a symlink leads out of `root`.
    InvalidPath
        If it contains control characters or is too long for a file system.
    ResultsNotFound
        If it names nothing, or something that is not a regular file.
    ResultsUnavailable
        If the file cannot be read now.
    """
    with translate_os_errors(relative):
        base, names = _locate(root, relative)
        file = FileIO(_open_without_symlinks(base, names))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ResultsNotFound(f"{relative!r} is not a result file")
    return file


@contextmanager
def translate_os_errors(relative: str) -> Iterator[None]:
    """Raise the errors of `open_below` for an OSError; they name the client's path only."""
    try:
        yield
    except OSError as error:
        if error.errno in _ABSENT:
            raise ResultsNotFound(f"there is no result file {relative!r}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidPath("the path is too long") from error
        reason = os.strerror(error.errno or errno.EIO)
        raise ResultsUnavailable(f"{relative!r} cannot be read now: {reason}") from error


def split_path(relative: str) -> list[str]:
    """Return the components of a client's path, which needs no file system to be checked.

    Raises
    ------
    ForbiddenPath, InvalidPath
        As `open_below` does.
    """
    try:
        length = len(os.fsencode(relative))
    except UnicodeEncodeError:
        raise InvalidPath("the path is not valid Unicode") from None
    if length > _MAX_PATH:
        raise InvalidPath(f"the path has {length} bytes; at most {_MAX_PATH} are allowed")
    if _CONTROL.search(relative):
        raise InvalidPath("the path contains control characters")
    names = [name for name in relative.split("/") if name not in {"", "."}]
    if relative.startswith("/") or "\\" in relative or ".." in names:
        raise ForbiddenPath(f"{relative!r} leads out of the results")
    if any(len(os.fsencode(name)) > _MAX_COMPONENT for name in names):
        raise InvalidPath(f"a name in the path has more than {_MAX_COMPONENT} bytes")
    return names


def _locate(root: Path, relative: str) -> tuple[str, Sequence[str]]:
    """Return the resolved root, and the names from there to a regular file, none a symlink."""
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, *split_path(relative)))
    if path != base and not path.startswith(os.path.join(base, "")):
        raise ForbiddenPath(f"{relative!r} leads out of the results")
    if relative.endswith("/") or not stat.S_ISREG(os.lstat(path).st_mode):
        raise ResultsNotFound(f"{relative!r} is not a result file")
    return base, os.path.relpath(path, base).split("/")


def _open_without_symlinks(base: str, names: Sequence[str]) -> int:
    """Return a descriptor of a file, opened one name at a time without following symlinks.

    A folder that became a symlink after `_locate` is an error.
    """
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = child
        # O_NONBLOCK: opening a FIFO that replaced the file must not block the thread.
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
