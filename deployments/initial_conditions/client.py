"""Initial conditions for a replica of a model, from the disk or from InitialConditions."""

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
    """Latitudes and longitudes, shape (2, y, x), of fields on the source's grid."""


def source_grid(fields: Path) -> Path:
    """Return the path of the latitudes and longitudes of fields, float64, shape (2, y, x)."""
    return fields.with_suffix(".grid.npy")


def open_analysis(fields: Path) -> Analysis:
    """Open the files of InitialConditions, which may be removed afterwards.

    Raises FileNotFoundError if they do not exist.
    """
    mapped = np.load(fields, mmap_mode="r")
    try:
        return Analysis(mapped, np.load(source_grid(fields)))
    except FileNotFoundError:
        return Analysis(mapped)


class InitialConditionsClient:
    """Finds initial conditions, on a shared disk or through InitialConditions.

    Parameters
    ----------
    initial_conditions : DeploymentHandle or None
        None if all replicas share a disk.
    retries : RetryPolicy
        Retries of a call to InitialConditions.
    """

    def __init__(
        self, initial_conditions: DeploymentHandle[Any] | None, *, retries: RetryPolicy = READ
    ) -> None:
        self._deployment = initial_conditions
        self._retries = retries
        self._lock = asyncio.Lock()
        # Only the latest, for other members of its execution: a state can have 300 MB.
        self._latest: tuple[str, Analysis] | None = None

    async def find(self, path: str, plan: Plan | Conditioning, execution_id: str) -> Analysis:
        """Return a state without blocking the event loop.

        Parameters
        ----------
        path : str
            Path that InitialConditions returned.
        plan : Plan or Conditioning
            Plan that starts from the state.

        Raises
        ------
        FileNotFoundError
            If the file does not exist, although all replicas share a disk.
        StageFailed
            If InitialConditions fails.
        """
        try:
            return await asyncio.to_thread(open_analysis, Path(path))
        except FileNotFoundError:
            if self._deployment is None:
                raise
        async with self._lock:
            if self._latest is None or self._latest[0] != path:
                # Frees the previous state before the next one arrives.
                self._latest = None
                self._latest = path, await self._read(self._deployment, plan, execution_id)
            return self._latest[1]

    async def _read(
        self, deployment: DeploymentHandle[Any], plan: Plan | Conditioning, execution_id: str
    ) -> Analysis:
        async def read() -> Analysis:
            return Analysis(*await deployment.read.remote(plan, execution_id))

        try:
            return await retry_transient(read, "reading initial conditions", self._retries)
        except Exception as error:
            raise as_stage_failure(Stage.INITIAL_CONDITIONS, error) from None
