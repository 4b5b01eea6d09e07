"""Initial conditions for a model's replica: from the disk, or from the deployment that has them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from deployments.runtime.failures import as_stage_failure, retry_transient
from deployments.runtime.retries import RetryPolicy
from workflows.base import Conditioning, Plan
from workflows.execution import Stage

READ = RetryPolicy(attempts=5, initial_delay_s=1.0)


@dataclass(frozen=True)
class Analysis:
    """An analysed state."""

    fields: NDArray[np.float32]
    """Shape (variable, lat, lon) or (variable, y, x); may be read-only."""
    points: NDArray[np.float64] | None = None
    """Latitudes and longitudes, shape (2, y, x), of fields on a grid of their own."""


def source_grid(fields: Path) -> Path:
    """Give the file with latitudes and longitudes of fields, float64, shape (2, y, x)."""
    return fields.with_suffix(".grid.npy")


def open_analysis(fields: Path) -> Analysis:
    """Open files as InitialConditions leaves them; whoever removes them then does no harm.

    Raises
    ------
    FileNotFoundError
        If they are not there.
    """
    found = np.load(fields, mmap_mode="r")
    try:
        return Analysis(found, np.load(source_grid(fields)))
    except FileNotFoundError:
        return Analysis(found)


class InitialConditionsClient:
    """Finds initial conditions, also where the disk is not the one that they were written to.

    Parameters
    ----------
    initial_conditions : DeploymentHandle or None
        Has ``read(plan, execution_id)``; None if every replica sees the same disk.
    retries : RetryPolicy
        How often it asks for one state.
    """

    def __init__(
        self, initial_conditions: DeploymentHandle[Any] | None, *, retries: RetryPolicy = READ
    ) -> None:
        self._source = initial_conditions
        self._retries = retries
        self._lock = asyncio.Lock()
        # The last one, for the further members of its execution: it may have 300 MB.
        self._last: tuple[str, Analysis] | None = None

    async def find(self, path: str, plan: Plan | Conditioning, execution_id: str) -> Analysis:
        """Give a state without holding the event loop.

        Parameters
        ----------
        path : str
            Where InitialConditions has put it.
        plan : Plan or Conditioning
            What it is the start of.
        execution_id : str

        Raises
        ------
        FileNotFoundError
            If it is not there, and nobody to ask.
        StageFailed
            If InitialConditions does not give it.
        """
        try:
            return await asyncio.to_thread(open_analysis, Path(path))
        except FileNotFoundError:
            if self._source is None:
                raise
        async with self._lock:
            if self._last is None or self._last[0] != path:
                self._last = None
                self._last = path, await self._ask(self._source, plan, execution_id)
            return self._last[1]

    async def _ask(
        self, source: DeploymentHandle[Any], plan: Plan | Conditioning, execution_id: str
    ) -> Analysis:
        async def read() -> Analysis:
            return Analysis(*await source.read.remote(plan, execution_id))

        try:
            return await retry_transient(read, "reading initial conditions", self._retries)
        except Exception as error:
            raise as_stage_failure(Stage.INITIAL_CONDITIONS, error) from None
