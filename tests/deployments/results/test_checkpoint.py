"""A checkpoint is read as it was written, or not at all."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from deployments.results.checkpoint import Checkpoint

CHECKPOINT = Checkpoint(
    4,
    "model",
    np.arange(12, dtype=np.float32).reshape(3, 2, 2),
    {"noise": np.arange(5.0), "cpu": np.arange(7, dtype=np.uint8)},
)


def encode(checkpoint: Checkpoint) -> bytes:
    file = io.BytesIO()
    checkpoint.write(file)
    return file.getvalue()


def is_unchanged(content: bytes) -> bool | None:
    """Return whether `CHECKPOINT` is read; None if the content is refused."""
    try:
        found = Checkpoint.read(CHECKPOINT.step, io.BytesIO(content))
    except ValueError:
        return None
    internal = CHECKPOINT.internal
    return (
        found.origin == CHECKPOINT.origin
        and found.internal.keys() == internal.keys()
        and np.array_equal(found.state, CHECKPOINT.state)
        and all(np.array_equal(found.internal[name], internal[name]) for name in internal)
    )


@pytest.mark.parametrize("mask", [1, 64])
def test_changed_byte_is_detected_or_harmless(mask: int) -> None:
    content = encode(CHECKPOINT)
    assert is_unchanged(content)
    for position, byte in enumerate(content):
        changed = content[:position] + bytes([byte ^ mask]) + content[position + 1 :]
        assert is_unchanged(changed) is not False, f"byte {position}"


def test_truncated_and_foreign_files_are_refused() -> None:
    content = encode(CHECKPOINT)
    for size in range(0, len(content), 7):
        assert is_unchanged(content[:size]) is None
    array = io.BytesIO()
    np.save(array, CHECKPOINT.state)
    assert is_unchanged(array.getvalue()) is None


def test_checkpoint_of_another_step_is_refused() -> None:
    assert is_unchanged(encode(replace(CHECKPOINT, step=5))) is None
