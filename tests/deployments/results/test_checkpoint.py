"""What is read of a checkpoint is what was written, or nothing."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from deployments.results.checkpoint import Checkpoint

WRITTEN = Checkpoint(
    4,
    "model",
    np.arange(12, dtype=np.float32).reshape(3, 2, 2),
    {"noise": np.arange(5.0), "cpu": np.arange(7, dtype=np.uint8)},
)


def content_of(checkpoint: Checkpoint) -> bytes:
    file = io.BytesIO()
    checkpoint.write(file)
    return file.getvalue()


def is_as_written(content: bytes) -> bool | None:
    """Say whether that is what is read; None if nothing is."""
    try:
        found = Checkpoint.read(WRITTEN.step, io.BytesIO(content))
    except ValueError:
        return None
    return (
        found.origin == WRITTEN.origin
        and found.internal.keys() == WRITTEN.internal.keys()
        and np.array_equal(found.state, WRITTEN.state)
        and all(np.array_equal(found.internal[k], WRITTEN.internal[k]) for k in WRITTEN.internal)
    )


@pytest.mark.parametrize("mask", [1, 64])
def test_no_byte_can_change_what_is_read(mask: int) -> None:
    content = content_of(WRITTEN)
    assert is_as_written(content)
    for place, byte in enumerate(content):
        changed = content[:place] + bytes([byte ^ mask]) + content[place + 1 :]
        assert is_as_written(changed) is not False, f"byte {place}"


def test_nothing_is_read_of_what_is_cut_or_something_else() -> None:
    content = content_of(WRITTEN)
    for size in range(0, len(content), 7):
        assert is_as_written(content[:size]) is None
    array = io.BytesIO()
    np.save(array, WRITTEN.state)
    assert is_as_written(array.getvalue()) is None


def test_that_of_another_step_is_none() -> None:
    assert is_as_written(content_of(replace(WRITTEN, step=5))) is None
