"""Initial conditions for a model's replica: from the disk, or from the deployment that has them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from deployments.runtime.failures import as_stage_failure, is_transient
from workflows.base import Conditioning, Plan
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

ATTEMPTS = 5


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
    pause_s : float
        What it waits for first before it asks again.
    """

    def __init__(
        self, initial_conditions: DeploymentHandle[Any] | None, *, pause_s: float = 1.0
    ) -> None:
        self._source = initial_conditions
        self._pause_s = pause_s
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
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return Analysis(*await source.read.remote(plan, execution_id))
            except Exception as error:
                if not is_transient(error) or attempt == ATTEMPTS:
                    raise as_stage_failure(Stage.INITIAL_CONDITIONS, error) from None
                logger.warning("initial conditions of %s not read: %s", execution_id, error)
                await asyncio.sleep(self._pause_s * 2 ** (attempt - 1))
        raise AssertionError("the last attempt has returned or raised")
