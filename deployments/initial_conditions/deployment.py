"""The InitialConditions deployment: fetches analysed states into files for the models."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

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
from workflows.readiness import ComponentStatus, NotReady, Ready

logger = logging.getLogger("ray.serve")

FETCHES = 4
"""Fetches at once."""
REMEMBERED = 64
"""States whose files other executions may share."""


@serve.deployment(
    name="InitialConditions",
    # Most of them wait for a state that another execution fetches.
    max_ongoing_requests=100,
    # Users' data sources run here, and may keep the interpreter for seconds.
    health_check_period_s=5,
    health_check_timeout_s=30,
)
class InitialConditions:
    """Fetches initial conditions, so that no GPU waits for a download.

    Executions that start from the same state share one fetch.

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
        self._fetches = asyncio.Semaphore(FETCHES)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._fetched: dict[str, Path] = {}
        """Files of states, which may have been removed since; the latest are last."""
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
            Path of a ``.npy`` file, float32, shape (variable, *space), in the order of
            ``plan.input_variables``; with a dimension of times before it if the model needs
            several. For a nowcast the fields are those of the source, shape (variable, y, x);
            `source_grid` is the file with their coordinates.

        Raises
        ------
        StageFailed
            If the source fails, or its fields do not fit the model.
        """
        workflow = plan.workflow if isinstance(plan, Plan) else None
        bind_execution(execution_id, workflow, Stage.INITIAL_CONDITIONS)
        source = await self._source(plan.data_source)
        target = self._work_dir / execution_id / f"{plan.data_source}.npy"
        state = _state_of(plan)
        # Of a satellite image, which the model of a nowcast regrids itself.
        has_points = isinstance(plan, Plan) and plan.conditioning is not None
        async with self._locks.setdefault(state, asyncio.Lock()):
            if not await asyncio.to_thread(_exists, target, self._fetched.get(state), has_points):
                async with self._fetches:
                    await self._fetch(source, plan, target)
            self._remember(state, target)
            if self._keep is not None:
                await asyncio.to_thread(_keep_newest, self._work_dir, self._keep)
        return str(target)

    def _remember(self, state: str, target: Path) -> None:
        self._fetched.pop(state, None)
        self._fetched[state] = target
        while len(self._fetched) > REMEMBERED:
            del self._fetched[next(iter(self._fetched))]

    async def _fetch(self, source: Any, plan: Plan | Conditioning, target: Path) -> None:
        """Fetch a state into a file, within the time limit of its source."""
        # A thread of its own: a source that hangs blocks its thread forever, and the event loop has
        # few threads.
        limit_s = self._options[plan.data_source].timeout_s
        thread = ContextThreadPool(1, plan.data_source, libraries=True)
        fetched = asyncio.get_running_loop().run_in_executor(thread, _fetch, source, plan, target)
        thread.shutdown(wait=False)
        try:
            await asyncio.wait_for(fetched, limit_s)
        except TimeoutError:
            raise StageFailed(
                Stage.INITIAL_CONDITIONS,
                f"{plan.data_source} returned no data for {plan.start()} within {limit_s:g} s",
            ) from None

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


def _state_of(plan: Plan | Conditioning) -> str:
    """Identify the state from which a plan starts, as a model receives it."""
    own = {"data_source", "start_time", "input_variables"}
    if isinstance(plan, Plan):
        own |= {"history_hours", "input_grid"}
    # A nowcast's image is on the grid of its source.
    regridded = None if isinstance(plan, Plan) and plan.conditioning else plan.grid
    return json.dumps(
        [plan.model_dump(mode="json", include=own), regridded and regridded.model_dump(mode="json")]
    )


def _exists(target: Path, other: Path | None, has_points: bool) -> bool:
    """Return whether a state's file exists, or has been linked to that of another execution."""
    if target.exists() and (not has_points or source_grid(target).exists()):
        return True
    if other is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if has_points:
            with suppress(FileExistsError):
                source_grid(target).hardlink_to(source_grid(other))
        with suppress(FileExistsError):
            target.hardlink_to(other)
    except OSError:
        return False  # removed since, or on a file system without links
    return True


def _fetch(source: Any, plan: Plan | Conditioning, target: Path) -> None:
    bridge_loguru()
    # Before the download: afterwards it could recreate the folder of an execution that has ended.
    target.parent.mkdir(parents=True, exist_ok=True)
    hours = plan.history_hours if isinstance(plan, Plan) else (0,)
    times = [plan.start() + np.timedelta64(hour, "h") for hour in hours]
    try:
        source_fields = source(np.array(times).astype("datetime64[ns]"), list(plan.input_variables))
    except (Exception, SystemExit) as error:
        raise (TransientFailure if is_network_error(error) else StageFailed)(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} returned no data for {plan.start()}: "
            f"{type(error).__name__}: {error}",
        ) from error
    points: NDArray[np.float64] | None = None
    try:
        selected = [select_variables(plan, source_fields, time) for time in times]
        if isinstance(plan, Plan) and plan.conditioning is not None:
            # The model of a nowcast regrids the image itself.
            fields, points = on_source_grid(plan, selected[-1])
        else:
            grid = plan.input_grid or plan.grid if isinstance(plan, Plan) else plan.grid
            fields = np.stack([on_model_grid(plan, grid, each) for each in selected])
            fields = fields[0] if len(fields) == 1 else fields
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
