"""Conducting in the test's own process, and waiting for what comes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deployments.conductor.loop import ConductorLoop
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.conducting_process import StandIns, conducting
from workflows import Execution
from workflows.errors import ExecutionNotFound

LIMIT_S = 120.0
"""What a busy machine may take: it bounds how long a failure takes, and no success waits for it."""

on_both_databases = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@asynccontextmanager
async def conducts(
    store_url: str, stand_ins: StandIns, **settings: Any
) -> AsyncIterator[ConductorLoop]:
    made = conducting(store_url, stand_ins, **settings)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        await made.stop()
        await task


async def until(
    store: ConductorStore,
    execution_id: str,
    holds: Callable[[Execution], bool],
    seconds: float = LIMIT_S,
) -> Execution:
    deadline = time.monotonic() + seconds
    while True:
        execution = store.read(execution_id)
        if holds(execution):
            return execution
        assert time.monotonic() < deadline, f"still {execution}"
        await asyncio.sleep(0.02)


async def comes_true(
    condition: Callable[[], bool | Awaitable[bool]], seconds: float = LIMIT_S
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


def is_there(store: ConductorStore, execution_id: str) -> bool:
    try:
        store.read(execution_id)
    except ExecutionNotFound:
        return False
    return True


def finished(execution: Execution) -> bool:
    return execution.ended_at is not None
