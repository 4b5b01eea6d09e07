"""Flushing files and removing folders that others use at the same time."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from deployments.runtime.files import background_flush, remove_tree


def test_removes_a_folder_to_which_another_thread_adds_files(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    for number in range(300):
        (folder / str(number)).touch()
    started = threading.Event()

    def add() -> None:
        for number in range(50):
            try:
                (folder / f"late-{number}").touch()
            except FileNotFoundError:
                return
            started.set()
            time.sleep(0.001)

    adding = threading.Thread(target=add)
    adding.start()
    started.wait(10)
    remove_tree(folder)
    adding.join()
    assert not folder.exists()


def test_a_missing_folder_counts_as_removed(tmp_path: Path) -> None:
    remove_tree(tmp_path / "missing")


def test_a_folder_that_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match="file"):
        remove_tree(file)


def test_the_final_flush_needs_the_file(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    with background_flush(file):
        file.write_bytes(b"data")
    with pytest.raises(FileNotFoundError), background_flush(tmp_path / "missing"):
        pass
