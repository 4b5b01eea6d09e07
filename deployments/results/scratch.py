"""Folders on the own disk for as long as a process needs them, and no longer than it lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from deployments.runtime.files import remove_tree


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a folder, and remove it at the end; those of killed processes are removed, too.

    Parameters
    ----------
    parent : Path
        Holds such folders and nothing else; of this machine alone.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.iterdir():
        with _locked(left) as is_mine:
            if is_mine:
                remove_tree(left)
    while True:
        folder = Path(mkdtemp(dir=parent))
        with _locked(folder) as is_mine:
            # Another may have taken it for one that was left, before it was locked.
            if not is_mine or not folder.exists():
                continue
            try:
                yield folder
            finally:
                remove_tree(folder)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder, unless another process has it; the lock goes with the process."""
    opened = -1
    with suppress(FileNotFoundError, NotADirectoryError):
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if opened < 0:
        yield False
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(opened)
