"""Files and folders on a local disk: flush and remove."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FLUSH_INTERVAL_S = 2.0
REMOVE_ATTEMPTS = 20
REMOVE_PAUSE_S = 0.01


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_file_system(path: Path) -> None:
    """Write all files and folders of the file system of a path through to the disk."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        # Only Linux has it.
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if library.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


@contextmanager
def background_flush(path: Path) -> Iterator[None]:
    """Flush a file every few seconds while the block writes it, and once more at the end.

    Raises the first OSError of a flush.
    """
    done = threading.Event()
    failures: list[OSError] = []

    def run() -> None:
        while not done.wait(FLUSH_INTERVAL_S) and not failures:
            try:
                # The file may not exist yet, or may have been removed with its execution.
                with suppress(FileNotFoundError):
                    flush(path)
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=run, name="flush", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        # The kernel reports a write error once; the final flush would succeed.
        raise failures[0]
    flush(path)


def remove_tree(path: Path) -> None:
    """Remove a folder even while others add files to it or remove it; OSError on failure."""
    for attempt in range(1, REMOVE_ATTEMPTS + 1):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            if not path.exists():
                return
        except OSError:
            # Not empty: a file was added between the listing and the removal.
            if attempt == REMOVE_ATTEMPTS:
                raise
            time.sleep(REMOVE_PAUSE_S)
