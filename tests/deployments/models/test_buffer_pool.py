"""Memory that is used again and again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deployments.models.buffer_pool import BufferPool


def some(dtype: str = "float32") -> np.ndarray:
    return np.arange(4 * 3 * 5, dtype=dtype).reshape(4, 3, 5)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [3, 1]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chosen_variables_are_copied(chosen: list[int], dtype: str) -> None:
    given = some(dtype)
    fields = BufferPool().fields(given, chosen)
    assert fields.dtype == np.float32 and fields.flags.c_contiguous
    np.testing.assert_array_equal(fields, given[chosen])
    given[:] = -1
    assert (fields >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_copied_as_well(dtype: torch.dtype) -> None:
    given = torch.from_numpy(some()).to(dtype).requires_grad_()
    np.testing.assert_array_equal(BufferPool().fields(given, [2, 0]), some()[[2, 0]])


def test_what_is_given_back_is_used_again_and_nothing_else() -> None:
    memory = BufferPool()
    first, second = (memory.fields(some() + n, [0, 1]) for n in range(2))
    assert not np.shares_memory(first, second)
    memory.give_back(first)
    third, fourth = (memory.fields(some() + n, [2, 3]) for n in range(2))
    assert third is first
    assert not np.shares_memory(fourth, second) and not np.shares_memory(fourth, third)


def test_nothing_stays_of_another_shape() -> None:
    memory = BufferPool()
    small = memory.fields(some(), [0])
    large = memory.fields(some(), [0, 1])
    memory.give_back(small)
    memory.give_back(large)
    assert memory.fields(some(), [1, 2]) is large
    assert memory.fields(some(), [0]) is not small
