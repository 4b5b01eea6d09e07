"""The window between a model and the disk: bounded, stubborn with the mortal, honest at the end."""

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
    """Writes a step when it is told to.

    Parameters
    ----------
    failures : dict of int to list of exceptions
        What writing a step fails with, one attempt after another.
    """

    def __init__(self, failures: dict[int, list[Exception]] | None = None) -> None:
        self._failures = failures or {}
        self.gate = asyncio.Semaphore(0)
        self.attempts: list[int] = []
        self.written: list[int] = []

    def let(self, count: int) -> None:
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
    """Let everything that can go on go on."""
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
        disk.let(1)
    await model
    disk.let(3)
    await window.close()

    assert sorted(disk.written) == list(range(10))
    assert window.written == 10


async def test_closing_waits_until_all_is_written() -> None:
    disk = Disk()
    window = WriteWindow(disk.write, size=4)
    await hand_over(window, 3, lambda _: None)
    closing = asyncio.create_task(window.close())
    disk.let(2)
    await settle()
    assert not closing.done()
    assert window.written == 2
    disk.let(1)
    await closing
    assert window.written == 3


@pytest.mark.parametrize(
    "error",
    [ConnectionError("lost"), BackPressureError(num_queued_requests=1, max_queued_requests=1)],
)
async def test_what_can_pass_is_tried_again(error: Exception) -> None:
    disk = Disk({1: [error]})
    window = WriteWindow(disk.write, size=4)
    disk.let(100)
    await hand_over(window, 3, lambda _: None)
    await window.close()

    assert sorted(disk.attempts) == [0, 1, 1, 2]
    assert sorted(disk.written) == [0, 1, 2]


async def test_what_never_passes_is_given_up() -> None:
    attempts = PACKAGER_CALL.attempts or 0
    disk = Disk({0: [ConnectionError(f"attempt {n}") for n in range(2 * attempts)]})
    window = WriteWindow(disk.write, size=1, retries=replace(PACKAGER_CALL, initial_delay_s=0.01))
    disk.let(100)
    await window.put(0, STEP)

    with pytest.raises(ConnectionError, match=f"attempt {attempts - 1}"):
        await window.close()
    assert len(disk.attempts) == attempts


@pytest.mark.parametrize(
    "error",
    [
        StageFailed("package", "no space left on the disk"),
        # As a handle raises it: the callee said no, also when it lost a connection of its own.
        RayTaskError("write_step", "no space left", ConnectionError("no space left")),
    ],
)
async def test_a_refusal_ends_the_member_with_its_reason(error: Exception) -> None:
    disk = Disk({1: [error]})
    window = WriteWindow(disk.write, size=2)
    disk.let(100)

    with pytest.raises(type(error), match="no space left"):
        await hand_over(window, 100, lambda _: None)
    with pytest.raises(type(error), match="no space left"):
        await window.close()
    assert disk.attempts.count(1) == 1
    assert len(disk.attempts) < 10


async def test_a_refusal_of_the_last_step_is_told_when_closing() -> None:
    disk = Disk({2: [StageFailed("package", "no space left")]})
    window = WriteWindow(disk.write, size=4)
    disk.let(100)
    await hand_over(window, 3, lambda _: None)

    with pytest.raises(StageFailed, match="no space left"):
        await window.close()


async def test_abandoning_stops_writes_and_retries() -> None:
    disk = Disk({0: [ConnectionError("lost")]})
    window = WriteWindow(disk.write, size=4)
    await hand_over(window, 3, lambda _: None)
    disk.let(1)
    await settle()
    await _within(1.0, window.abandon())
    attempts = len(disk.attempts)
    disk.let(100)
    await asyncio.sleep(0.7)

    assert len(disk.attempts) == attempts
    assert disk.written == []


async def _within(seconds: float, awaitable: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await awaitable


async def defer(window: WriteWindow, noted: list[str]) -> None:
    async def write() -> None:
        noted.append("begun")
        await asyncio.sleep(0)
        noted.append("written")

    await window.defer(write)


async def test_what_is_defer_steps_is_written_when_they_are() -> None:
    disk, noted = Disk(), list[str]()
    window = WriteWindow(disk.write, size=3)
    await hand_over(window, 2, lambda _: None)
    await defer(window, noted)
    # It takes no room, and later steps do not keep it waiting.
    await window.put(2, STEP)
    disk.let(1)
    await settle()
    assert (noted, window.has_deferred) == ([], True)
    disk.let(1)
    await settle()
    assert (noted, window.has_deferred) == (["begun", "written"], False)
    assert window.written == 2
    disk.let(1)
    await window.close()


async def test_closing_waits_for_what_was_defer() -> None:
    disk, noted = Disk(), list[str]()
    window = WriteWindow(disk.write, size=3)
    disk.let(1)
    await window.put(0, STEP)
    await defer(window, noted)
    await window.close()
    assert noted == ["begun", "written"]


@pytest.mark.parametrize("how", ["failed", "abandoned"])
async def test_behind_steps_that_are_not_written_nothing_is(how: str) -> None:
    disk, noted = Disk({0: [StageFailed("package", "no space left on the disk")]}), list[str]()
    window = WriteWindow(disk.write, size=3)
    await window.put(0, STEP)
    await defer(window, noted)
    if how == "abandoned":
        await window.abandon()
    else:
        disk.let(1)
        with pytest.raises(StageFailed, match="no space left"):
            await window.close()
    assert (noted, window.has_deferred) == ([], False)


async def test_counts_on_from_what_was_there() -> None:
    disk = Disk()
    window = WriteWindow(disk.write, size=3, written=4)
    disk.let(1)
    await window.put(4, STEP)
    await window.close()
    assert window.written == 5
