"""Scratch folders are removed with the block or after the death of their process."""

import os
from pathlib import Path

import pytest

from deployments.results.scratch import scratch_folder


def test_folders_exist_during_the_block(tmp_path: Path) -> None:
    parent = tmp_path / "scratch"
    with scratch_folder(parent) as first, scratch_folder(parent) as second:
        (first / "results.nc").write_bytes(b"x")
        assert first != second
        assert sorted(parent.iterdir()) == sorted([first, second])
    assert list(parent.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with scratch_folder(tmp_path) as folder:
            (folder / "results.nc").write_bytes(b"half a file")
            os._exit(77)
    os.waitpid(child, 0)
    (stale,) = tmp_path.iterdir()
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not stale.exists()
