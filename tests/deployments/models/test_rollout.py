"""Rollouts that are written while they are computed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.models.rollout import write_rollout
from deployments.models.write_window import WriteWindow
from deployments.runtime.busy_clock import Activity
from deployments.runtime.metrics import MODEL_STEP_SECONDS
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob
from tests.deployments.runtime.test_busy_clock import seconds_by_activity
from tests.measured import Measured

STEP_S = 0.05


async def test_waiting_for_the_disk_does_not_count_as_busy() -> None:
    def rollout(model: Any, job: WorkerJob) -> Generator[NDArray[np.float32]]:
        for _ in range(4):
            time.sleep(STEP_S)
            yield np.zeros(1, np.float32)

    async def write_slowly(index: int, fields: NDArray[np.float32]) -> None:
        await asyncio.sleep(4 * STEP_S)

    measured = Measured()
    worker = ModelWorker("fcn3", object, recorder=measured)
    await worker.start()
    start = time.monotonic()
    window = WriteWindow(write_slowly, 1)
    updates = [p async for p in write_rollout(worker, 1, rollout, window, "forecast")]
    elapsed = time.monotonic() - start
    assert updates[-1].written == 4
    worker.clock.tick()
    seconds = seconds_by_activity(measured)
    assert 4 * STEP_S <= seconds[Activity.BUSY]
    # Three steps wait for room. The model is free while the last one is written.
    assert seconds[Activity.WRITING] > 0
    assert seconds[Activity.BUSY] + seconds[Activity.WRITING] <= elapsed
    steps = measured.values(MODEL_STEP_SECONDS)
    assert len(steps) == 4
    assert min(steps) >= STEP_S
