"""Temporary folders on the local disk; those of killed processes are removed later."""

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
    """Create a folder and remove it at the end; remove those of killed processes, too.

    The parent must hold nothing else and be used by this machine alone.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.iterdir():
        with _lock(stale) as is_locked:
            if is_locked:
                remove_tree(stale)
    while True:
        folder = Path(mkdtemp(dir=parent))
        with _lock(folder) as is_locked:
            # Before it was locked, another process may have removed it as stale.
            if not is_locked or not folder.exists():
                continue
            try:
                yield folder
            finally:
                remove_tree(folder)
            return


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder unless another process holds its lock, which ends with that process."""
    descriptor = -1
    with suppress(FileNotFoundError, NotADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if descriptor < 0:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
