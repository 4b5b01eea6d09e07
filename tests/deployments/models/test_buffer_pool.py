"""Copies of fields into memory that is reused."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.models.buffer_pool import BufferPool


def some_fields(dtype: str = "float32") -> np.ndarray:
    return np.arange(4 * 3 * 5, dtype=dtype).reshape(4, 3, 5)


@pytest.mark.parametrize("variables", [[0, 1, 2, 3], [3, 1]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_copies_some_variables(variables: list[int], dtype: str) -> None:
    fields = some_fields(dtype)
    copy = BufferPool().copy(fields, variables)
    assert copy.dtype == np.float32 and copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, fields[variables])
    fields[:] = -1
    assert (copy >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_tensors(dtype: str) -> None:
    import torch

    fields = torch.from_numpy(some_fields()).to(getattr(torch, dtype)).requires_grad_()
    np.testing.assert_array_equal(BufferPool().copy(fields, [2, 0]), some_fields()[[2, 0]])


def test_reuses_only_released_arrays() -> None:
    pool = BufferPool()
    first, second = (pool.copy(some_fields() + n, [0, 1]) for n in range(2))
    assert not np.shares_memory(first, second)
    pool.release(first)
    third, fourth = (pool.copy(some_fields() + n, [2, 3]) for n in range(2))
    assert third is first
    assert not np.shares_memory(fourth, second) and not np.shares_memory(fourth, third)


def test_keeps_arrays_of_one_shape_only() -> None:
    pool = BufferPool()
    small = pool.copy(some_fields(), [0])
    large = pool.copy(some_fields(), [0, 1])
    pool.release(small)
    pool.release(large)
    assert pool.copy(some_fields(), [1, 2]) is large
    assert pool.copy(some_fields(), [0]) is not small
