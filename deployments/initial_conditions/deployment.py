"""The InitialConditions deployment: fetches analysed states into files for the models."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.initial_conditions.client import open_analysis, source_grid
from deployments.initial_conditions.fields import (
    Floats,
    on_model_grid,
    on_source_grid,
    select_variables,
)
from deployments.initial_conditions.options import SourceOptions
from deployments.runtime.failures import TransientFailure
from deployments.runtime.files import remove_tree
from deployments.runtime.gpus import hide_gpus
from deployments.runtime.import_path import load, origin_of
from deployments.runtime.log_context import ContextThreadPool, bind_execution, bridge_loguru
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.execution import Stage
from workflows.grids import Grid
from workflows.readiness import ComponentStatus, NotReady, Ready

logger = logging.getLogger("ray.serve")


@serve.deployment(
    name="InitialConditions",
    max_ongoing_requests=4,
    # Users' data sources run here, and may keep the interpreter for seconds.
    health_check_period_s=5,
    health_check_timeout_s=30,
)
class InitialConditions:
    """Fetches initial conditions, so that no GPU waits for a download.

    Parameters
    ----------
    sources : list of SourceOptions
        Data sources with Earth2Studio's interface.
    work_dir : Path
        Folder for working files. Replicas of models that do not share it call `read`.
    keep : int, optional
        Number of executions whose states are kept; `work_dir` may contain nothing else then. None
        if the states are removed with the executions' working files.
    """

    async def __init__(  # type: ignore[misc]
        self, sources: list[SourceOptions], work_dir: Path, keep: int | None = None
    ) -> None:
        hide_gpus()
        self._keep = keep
        self._options = {source.name: source for source in sources}
        self._work_dir = work_dir
        self._sources: dict[str, Any] = {}
        self._failures: dict[str, str] = {}
        for name in self._options:
            await asyncio.to_thread(self._load, name)

    def _load(self, name: str) -> None:
        """Load a source; store an error instead of raising it."""
        try:
            self._sources[name] = load(self._options[name])
            self._failures.pop(name, None)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            # Logged once: loading is retried every few seconds.
            if failure != self._failures.get(name):
                logger.exception("data source %s could not be loaded", name)
            self._failures[name] = failure

    async def _source(self, name: str) -> Any:
        """Return a data source, loaded if necessary; ModelUnavailable if loading fails."""
        if name not in self._sources:
            await asyncio.to_thread(self._load, name)
        if name in self._failures:
            raise ModelUnavailable(
                Stage.INITIAL_CONDITIONS,
                f"data source {name} could not be loaded: {self._failures[name]}",
            )
        return self._sources[name]

    async def check_readiness(self, name: str) -> ComponentStatus:
        """Return whether a data source can be used; retry a load that failed."""
        try:
            source = await self._source(name)
        except ModelUnavailable as error:
            return NotReady(reason=error.reason)
        return Ready(origin=origin_of(source, self._options[name]))

    async def fetch(self, plan: Plan | Conditioning, execution_id: str) -> str:
        """Fetch the state at the plan's start into a file, unless it exists.

        Returns
        -------
        str
            Path of a ``.npy`` file, float32, shape (variable, lat, lon), in the order of
            ``plan.input_variables``. For a model with a regional grid the fields are those of the
            source, shape (variable, y, x); `source_grid` is the file with their coordinates.

        Raises
        ------
        StageFailed
            If the source fails, or its fields do not fit the model.
        """
        workflow = plan.workflow if isinstance(plan, Plan) else None
        bind_execution(execution_id, workflow, Stage.INITIAL_CONDITIONS)
        source = await self._source(plan.data_source)
        target = self._work_dir / execution_id / f"{plan.data_source}.npy"
        if not await asyncio.to_thread(target.exists):
            # A thread of its own: a source that hangs blocks its thread forever, and the event loop
            # has few threads.
            limit_s = self._options[plan.data_source].timeout_s
            thread = ContextThreadPool(1, plan.data_source, libraries=True)
            fetched = asyncio.get_running_loop().run_in_executor(
                thread, _fetch, source, plan, target
            )
            thread.shutdown(wait=False)
            try:
                await asyncio.wait_for(fetched, limit_s)
            except TimeoutError:
                raise StageFailed(
                    Stage.INITIAL_CONDITIONS,
                    f"{plan.data_source} returned no data for {plan.start()} within {limit_s:g} s",
                ) from None
            if self._keep is not None:
                await asyncio.to_thread(_keep_newest, self._work_dir, self._keep)
        return str(target)

    async def read(
        self, plan: Plan | Conditioning, execution_id: str
    ) -> tuple[Floats, NDArray[np.float64] | None]:
        """Return a state to a replica on another machine; fetch it if necessary, as `fetch`.

        Returns
        -------
        fields : ndarray
            As in the file of `fetch`.
        points : ndarray, shape (2, y, x), or None
            Latitudes and longitudes of fields on the source's grid.
        """
        path = Path(await self.fetch(plan, execution_id))
        try:
            analysis = await asyncio.to_thread(open_analysis, path)
        except FileNotFoundError:
            raise TransientFailure(
                Stage.INITIAL_CONDITIONS, "the initial conditions were removed before the read"
            ) from None
        return analysis.fields, analysis.points


def _fetch(source: Any, plan: Plan | Conditioning, target: Path) -> None:
    bridge_loguru()
    # Before the download: afterwards it could recreate the folder of an execution that has ended.
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source_fields = source(
            np.array([plan.start()]).astype("datetime64[ns]"), list(plan.input_variables)
        )
    except (Exception, SystemExit) as error:
        raise (TransientFailure if is_network_error(error) else StageFailed)(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} returned no data for {plan.start()}: "
            f"{type(error).__name__}: {error}",
        ) from error
    points: NDArray[np.float64] | None = None
    try:
        selected = select_variables(plan, source_fields)
        if isinstance(plan.grid, Grid):
            fields = on_model_grid(plan, plan.grid, selected)
        else:
            fields, points = on_source_grid(plan, selected)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"the data of {plan.data_source} for {plan.start()} cannot be used: "
            f"{type(error).__name__}: {error}",
        ) from error
    if points is not None:
        # Written first, since readers look for the fields.
        _write(source_grid(target), points)
    _write(target, fields)


NETWORK_CLIENTS = {
    "obstore",
    "pystac_client",
    "aiohttp",
    "httpx",
    "requests",
    "urllib3",
    "botocore",
}


def is_network_error(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is a network error, which may be transient."""
    while error is not None:
        if isinstance(error, FileNotFoundError) or "NotFound" in type(error).__name__:
            return False
        package = type(error).__module__.partition(".")[0]
        if isinstance(error, OSError) or package in NETWORK_CLIENTS:
            return True
        # Sources wrap the errors of their clients.
        error = error.__cause__
    return False


def _keep_newest(folder: Path, n: int) -> None:
    """Remove the states of all executions but the newest."""
    by_age = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            by_age.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(by_age)[:-n]:
        remove_tree(path)


def _write(target: Path, array: NDArray[Any]) -> None:
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(target)
