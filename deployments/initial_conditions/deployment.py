"""InitialConditions: analysed states from a data source, kept on disk for the models."""

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
from deployments.initial_conditions.options import SourceOptions
from deployments.runtime.failures import TransientFailure
from deployments.runtime.files import remove_tree
from deployments.runtime.gpus import hide_gpus
from deployments.runtime.import_path import describe_origin, load
from deployments.runtime.log_context import ContextThreadPool, bind_execution, bridge_loguru
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.execution import Stage
from workflows.grids import Grid

logger = logging.getLogger("ray.serve")

Floats = NDArray[np.float32]

COORDINATE_TOLERANCE = 1e-4
"""Degrees by which a source's grid may differ from the model's: float32 coordinates do."""


@serve.deployment(name="InitialConditions", max_ongoing_requests=4)
class InitialConditions:
    """Fetches initial conditions, so that no GPU waits for a download.

    Parameters
    ----------
    sources : list of SourceOptions
        Data sources with Earth2Studio's interface, by name.
    work_dir : Path
        Folder for working files. Models' replicas that do not see it call `read`.
    keep : int, optional
        Executions whose states are kept, those of the others are removed; nothing else may lie in
        `work_dir` then. None if somebody else removes them.
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
        """Load a source; a failure is kept as the reason why it cannot be used."""
        try:
            self._sources[name] = load(self._options[name])
            self._failures.pop(name, None)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            # Once: it is tried again every few seconds.
            if failure != self._failures.get(name):
                logger.exception("data source %s could not be loaded", name)
            self._failures[name] = failure

    async def describe(self, name: str) -> dict[str, Any]:
        """Say where a source's data come from; tries again to load one that failed.

        Raises
        ------
        ModelUnavailable
            If it cannot be loaded.
        """
        if name not in self._sources:
            await asyncio.to_thread(self._load, name)
        if name in self._failures:
            raise ModelUnavailable(
                Stage.INITIAL_CONDITIONS,
                f"data source {name} could not be loaded: {self._failures[name]}",
            )
        return dict(describe_origin(self._sources[name], self._options[name]))

    async def fetch(self, plan: Plan | Conditioning, execution_id: str) -> str:
        """Fetch the state at the plan's start and keep it as a file.

        Returns
        -------
        str
            Path of a ``.npy`` file, float32, shape (variable, lat, lon), in the order of
            ``plan.input_variables``. For a model on a map of its own the fields are those of the
            source, (variable, y, x); `source_grid` gives the file with their coordinates.

        Raises
        ------
        StageFailed
            If the source fails, or what it gives does not fit the model.
        """
        workflow = plan.workflow if isinstance(plan, Plan) else None
        bind_execution(execution_id, workflow, Stage.INITIAL_CONDITIONS)
        await self.describe(plan.data_source)
        target = self._work_dir / execution_id / f"{plan.data_source}.npy"
        if not await asyncio.to_thread(target.exists):
            # The thread of a source that hangs cannot be ended, but nobody waits for it any more.
            # It is not one of the loop's own: those are few, and all else here needs them.
            limit_s = self._options[plan.data_source].timeout_s
            thread = ContextThreadPool(1, plan.data_source, libraries=True)
            fetched = asyncio.get_running_loop().run_in_executor(thread, self._fetch, plan, target)
            thread.shutdown(wait=False)
            try:
                await asyncio.wait_for(fetched, limit_s)
            except TimeoutError:
                raise StageFailed(
                    Stage.INITIAL_CONDITIONS,
                    f"{plan.data_source} gave no data for {plan.start()} within {limit_s:g} s",
                ) from None
            if self._keep is not None:
                await asyncio.to_thread(_keep_newest, self._work_dir, self._keep)
        return str(target)

    async def read(
        self, plan: Plan | Conditioning, execution_id: str
    ) -> tuple[Floats, NDArray[np.float64] | None]:
        """Give what `fetch` keeps, for a replica on another machine; fetches it again if need be.

        Returns
        -------
        tuple
            Fields, and the coordinates of those on a map of their own.

        Raises
        ------
        StageFailed
            As `fetch`.
        """
        path = Path(await self.fetch(plan, execution_id))
        try:
            found = await asyncio.to_thread(open_analysis, path)
        except FileNotFoundError:
            raise TransientFailure(
                Stage.INITIAL_CONDITIONS, "the initial conditions were removed meanwhile"
            ) from None
        return found.fields, found.points

    def _fetch(self, plan: Plan | Conditioning, target: Path) -> None:
        bridge_loguru()
        # Not after the download: the folder of an execution that has ended meanwhile is gone.
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self._sources[plan.data_source](
                np.array([plan.start()]).astype("datetime64[ns]"), list(plan.input_variables)
            )
        except (Exception, SystemExit) as error:
            raise (TransientFailure if may_pass(error) else StageFailed)(
                Stage.INITIAL_CONDITIONS,
                f"{plan.data_source} gave no data for {plan.start()}: "
                f"{type(error).__name__}: {error}",
            ) from error
        points: NDArray[np.float64] | None = None
        try:
            found = _of_one_time(plan, found)
            if isinstance(plan.grid, Grid):
                fields = _on_the_models_grid(plan, plan.grid, found)
            else:
                fields, points = _on_its_own_grid(plan, found)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise StageFailed(
                Stage.INITIAL_CONDITIONS,
                f"what {plan.data_source} gave for {plan.start()} is not to be used: "
                f"{type(error).__name__}: {error}",
            ) from error
        if points is not None:
            # First: the fields are what others look for.
            _put(source_grid(target), points)
        _put(target, fields)


CLIENTS = {"obstore", "pystac_client", "aiohttp", "httpx", "requests", "urllib3", "botocore"}
"""Packages whose errors, and what they are the cause of, tell of a network."""


def may_pass(error: BaseException | None) -> bool:
    """Say whether another try may help: a network passes, a date without data does not."""
    while error is not None:
        if isinstance(error, FileNotFoundError) or "NotFound" in type(error).__name__:
            return False
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in CLIENTS:
            return True
        # Sources wrap what their clients raise.
        error = error.__cause__
    return False


def _keep_newest(folder: Path, n: int) -> None:
    """Remove what was fetched for all executions but the last ones."""
    ages = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages)[:-n]:
        remove_tree(path)


def _put(target: Path, array: NDArray[Any]) -> None:
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(target)


def _of_one_time(plan: Plan | Conditioning, found: Any) -> Any:
    """Bring a source's answer into the order of the plan's variables."""
    for dim in ("lead_time", "time"):
        if dim in found.dims:
            found = found.isel({dim: 0})
    found = found.transpose("variable", ...)
    names = [str(name) for name in found["variable"].values]
    lacking = [name for name in plan.input_variables if name not in names]
    if lacking:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} gave no {', '.join(lacking[:5])} at {plan.start()}",
        )
    if names != list(plan.input_variables):
        found = found.sel(variable=list(plan.input_variables))
    return found


def _on_the_models_grid(plan: Plan | Conditioning, grid: Grid, found: Any) -> Floats:
    """Take fields as the model needs them, or say why they do not fit."""
    found = found.transpose("variable", "lat", "lon")
    for name, wanted in (("lat", grid.latitudes()), ("lon", grid.longitudes())):
        given = np.asarray(found[name], dtype=np.float64)
        if given.shape != wanted.shape or np.abs(given - wanted).max() > COORDINATE_TOLERANCE:
            raise StageFailed(
                Stage.INITIAL_CONDITIONS,
                f"{plan.data_source} has {given.size} values of {name} from {given[0]:g} to "
                f"{given[-1]:g}, the model needs {wanted.size} from {wanted[0]:g} to "
                f"{wanted[-1]:g}",
            )
    fields = np.ascontiguousarray(found.values, dtype=np.float32)
    spoilt = [
        name
        for name, field in zip(plan.input_variables, fields, strict=True)
        if not np.isfinite(field).all()
    ]
    if spoilt:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} has missing values in {', '.join(spoilt[:5])} at {plan.start()}",
        )
    return fields


def _on_its_own_grid(plan: Plan | Conditioning, found: Any) -> tuple[Floats, NDArray[np.float64]]:
    """Take fields and their coordinates as the source has them; the model brings them to its own.

    Points without a value are common at the rim of a satellite's view. Whether they matter only
    the model can say.
    """
    along = []
    for name in ("lat", "lon"):
        # GOES has its coordinates under these names: they are no dimensions.
        one = next((found[n] for n in (f"_{name}", name) if n in found.coords), None)
        if one is None or not np.isfinite(one).any():
            raise StageFailed(
                Stage.INITIAL_CONDITIONS, f"{plan.data_source} does not say where its points lie"
            )
        along.append(one)
    points = [np.asarray(one, np.float64) for one in along]
    dims = along[0].dims
    if len(dims) == 1:
        dims = (*dims, *along[1].dims)
        points = list(np.meshgrid(*points, indexing="ij"))
    found = found.transpose("variable", *dims)
    fields = np.ascontiguousarray(found.values, dtype=np.float32)
    if points[0].shape != fields.shape[1:] or points[1].shape != fields.shape[1:]:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} has fields of shape {fields.shape[1:]} but coordinates of shapes "
            f"{points[0].shape} and {points[1].shape}",
        )
    empty = [
        name
        for name, field in zip(plan.input_variables, fields, strict=True)
        if not np.isfinite(field).any()
    ]
    if empty:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} has no value in {', '.join(empty[:5])} at {plan.start()}",
        )
    return fields, np.stack(points)
