"""The window of unwritten steps: its bound, retries and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.models.write_window import PACKAGER_CALL, WriteWindow
from workflows.errors import StageFailed

STEP = np.zeros((1, 2, 2), np.float32)


class Disk:
    """Writes steps when the test allows it.

    Parameters
    ----------
    failures : dict of int to list of exceptions
        Errors of the attempts to write a step, in order.
    """

    def __init__(self, failures: dict[int, list[Exception]] | None = None) -> None:
        self._failures = failures or {}
        self.gate = asyncio.Semaphore(0)
        self.attempts: list[int] = []
        self.written: list[int] = []

    def allow(self, count: int) -> None:
        for _ in range(count):
            self.gate.release()

    async def write(self, time_index: int, fields: NDArray[np.float32]) -> None:
        assert fields is STEP
        self.attempts.append(time_index)
        await self.gate.acquire()
        failures = self._failures.get(time_index)
        if failures:
            raise failures.pop(0)
        self.written.append(time_index)


async def settle() -> None:
    """Run every task until it has to wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def hand_over(window: WriteWindow, n_steps: int, note: Callable[[int], None]) -> None:
    for step in range(n_steps):
        await window.put(step, STEP)
        note(step)


async def test_a_model_is_never_more_than_the_window_ahead() -> None:
    disk = Disk()
    window = WriteWindow(disk.write, size=3)
    handed_over: list[int] = []
    model = asyncio.create_task(hand_over(window, 10, handed_over.append))
    for _ in range(7):
        await settle()
        assert len(handed_over) == len(disk.written) + 3
        assert not model.done()
        disk.allow(1)
    await model
    disk.allow(3)
    await window.close()

    assert sorted(disk.written) == list(range(10))
    assert window.written == 10


async def test_closing_waits_until_everything_is_written() -> None:
    disk = Disk()
    window = WriteWindow(disk.write, size=4)
    await hand_over(window, 3, lambda _: None)
    closing = asyncio.create_task(window.close())
    disk.allow(2)
    await settle()
    assert not closing.done()
    assert window.written == 2
    disk.allow(1)
    await closing
    assert window.written == 3


@pytest.mark.parametrize(
    "error",
    [ConnectionError("lost"), BackPressureError(num_queued_requests=1, max_queued_requests=1)],
)
async def test_transient_errors_are_retried(error: Exception) -> None:
    disk = Disk({1: [error]})
    window = WriteWindow(disk.write, size=4)
    disk.allow(100)
    await hand_over(window, 3, lambda _: None)
    await window.close()

    assert sorted(disk.attempts) == [0, 1, 1, 2]
    assert sorted(disk.written) == [0, 1, 2]


async def test_retries_end_after_the_last_attempt() -> None:
    attempts = PACKAGER_CALL.attempts or 0
    disk = Disk({0: [ConnectionError(f"attempt {n}") for n in range(2 * attempts)]})
    window = WriteWindow(disk.write, size=1, retries=replace(PACKAGER_CALL, initial_delay_s=0.01))
    disk.allow(100)
    await window.put(0, STEP)

    with pytest.raises(ConnectionError, match=f"attempt {attempts - 1}"):
        await window.close()
    assert len(disk.attempts) == attempts


@pytest.mark.parametrize(
    "error",
    [
        StageFailed("package", "no space left on the disk"),
        # As a handle raises it. The callee refused, although it lost a connection of its own.
        RayTaskError("write_step", "no space left", ConnectionError("no space left")),
    ],
)
async def test_a_permanent_error_is_raised_by_the_next_step(error: Exception) -> None:
    disk = Disk({1: [error]})
    window = WriteWindow(disk.write, size=2)
    disk.allow(100)

    with pytest.raises(type(error), match="no space left"):
        await hand_over(window, 100, lambda _: None)
    with pytest.raises(type(error), match="no space left"):
        await window.close()
    assert disk.attempts.count(1) == 1
    assert len(disk.attempts) < 10


async def test_an_error_of_the_last_step_is_raised_on_closing() -> None:
    disk = Disk({2: [StageFailed("package", "no space left")]})
    window = WriteWindow(disk.write, size=4)
    disk.allow(100)
    await hand_over(window, 3, lambda _: None)

    with pytest.raises(StageFailed, match="no space left"):
        await window.close()


async def test_abandoning_stops_writes_and_retries() -> None:
    disk = Disk({0: [ConnectionError("lost")]})
    window = WriteWindow(disk.write, size=4)
    await hand_over(window, 3, lambda _: None)
    disk.allow(1)
    await settle()
    await _within(1.0, window.abandon())
    attempts = len(disk.attempts)
    disk.allow(100)
    await asyncio.sleep(0.7)

    assert len(disk.attempts) == attempts
    assert disk.written == []


async def _within(seconds: float, awaitable: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await awaitable


async def defer(window: WriteWindow, noted: list[str]) -> None:
    async def write() -> None:
        noted.append("started")
        await asyncio.sleep(0)
        noted.append("written")

    await window.defer(write)


async def test_a_deferred_write_waits_for_the_steps_before_it() -> None:
    disk, noted = Disk(), list[str]()
    window = WriteWindow(disk.write, size=3)
    await hand_over(window, 2, lambda _: None)
    await defer(window, noted)
    # It takes no room in the window, and does not wait for later steps.
    await window.put(2, STEP)
    disk.allow(1)
    await settle()
    assert (noted, window.has_deferred) == ([], True)
    disk.allow(1)
    await settle()
    assert (noted, window.has_deferred) == (["started", "written"], False)
    assert window.written == 2
    disk.allow(1)
    await window.close()


async def test_closing_waits_for_a_deferred_write() -> None:
    disk, noted = Disk(), list[str]()
    window = WriteWindow(disk.write, size=3)
    disk.allow(1)
    await window.put(0, STEP)
    await defer(window, noted)
    await window.close()
    assert noted == ["started", "written"]


@pytest.mark.parametrize("how", ["failed", "abandoned"])
async def test_a_deferred_write_is_dropped_if_a_step_is_not_written(how: str) -> None:
    disk, noted = Disk({0: [StageFailed("package", "no space left on the disk")]}), list[str]()
    window = WriteWindow(disk.write, size=3)
    await window.put(0, STEP)
    await defer(window, noted)
    if how == "abandoned":
        await window.abandon()
    else:
        disk.allow(1)
        with pytest.raises(StageFailed, match="no space left"):
            await window.close()
    assert (noted, window.has_deferred) == ([], False)


async def test_counting_continues_from_earlier_steps() -> None:
    disk = Disk()
    window = WriteWindow(disk.write, size=3, written=4)
    disk.allow(1)
    await window.put(4, STEP)
    await window.close()
    assert window.written == 5
