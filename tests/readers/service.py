"""A server of small results whose state the tests change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from deployments.store.conductor_view import ConductorStore
from deployments.store.retention_view import RetentionView
from serve_app.http.create_app import create_app
from serve_app.http.options import IngressOptions
from tests.deployments.results.samples import PROVENANCE, fields, make_nowcast_plan, make_plan
from workflows.base import Plan
from workflows.execution import Execution, Status
from workflows.grids import Grid, LambertGrid
from workflows.manifest import NETCDF, ZARR, Manifest

# Maps larger than the blocks that readers fetch at once: 64 KiB.
PLANS = {
    "fcn3": make_plan(grid=Grid(n_lat=91, n_lon=180)),
    "stormscope": make_nowcast_plan(
        grid=LambertGrid(n_y=120, n_x=140, spacing_m=40e3),
        start_time=datetime(2025, 1, 1, 6, tzinfo=UTC),
    ),
}
WAYS = ("expired", "purged", "forgotten", "unmounted")
"""How a result disappears while it is read."""


class Service:
    """Creates results, and makes them disappear."""

    def __init__(self, url: str, folder: Path, store: ConductorStore) -> None:
        self._url = url
        self._folder = folder
        self._store = store
        self._fence = store.issue_fence()
        self._count = 0

    def running(self, plan: Plan) -> str:
        """Return the id of an execution that has no results yet."""
        self._count += 1
        execution_id = f"exec_1767000000_{self._count:08x}"
        execution = Execution(
            execution_id=execution_id,
            workflow=plan.workflow,
            status=Status.QUEUED,
            parameters={},
            plan=plan.model_dump(mode="json"),
            created_at=datetime.now(UTC),
        )
        self._store.submit(execution, max_queued=100)
        assert self._store.claim_next(self._fence) is not None
        return execution_id

    def completed(self, plan: Plan) -> str:
        """Return the id of an execution with results."""
        execution_id = self.running(plan)
        results = ResultsStore(DiskStorage(self._folder / "results", self._folder / "work"))
        results.create(plan, execution_id, PROVENANCE, 1)
        for member in plan.members:
            for time_index in range(plan.n_times):
                values = values_of(plan, member, time_index)
                results.write_step(execution_id, 1, member, time_index, values)
        if plan.output_format == "netcdf4":
            results.export_netcdf(execution_id, 1)
        files, totals = results.describe(execution_id, 1)
        manifest = Manifest(output_files=files, totals=totals)
        for status in (Status.PENDING_RESULTS, Status.COMPLETED):
            self._store.update(self._fence, execution_id, status=status, results=manifest)
        return execution_id

    def url(self, plan: Plan, execution_id: str) -> str:
        """Return the URL of an execution's dataset."""
        name = ZARR if plan.output_format == "zarr" else NETCDF
        base = f"{self._url}/v1/infer/{plan.workflow}/{execution_id}"
        return f"{base}/results/{execution_id}/{name}"

    def path(self, plan: Plan, execution_id: str) -> Path:
        """Return the folder of an execution's result."""
        return self._folder / "results" / plan.workflow / execution_id

    @contextmanager
    def without(self, plan: Plan, execution_id: str, way: str) -> Iterator[None]:
        """Make a result disappear."""
        storage = DiskStorage(self._folder / "results", self._folder / "work")
        folder = self._folder / "results"
        match way:
            case "expired":
                self._store.update(self._fence, execution_id, status=Status.EXPIRED)
                storage.purge(plan.workflow, execution_id)
            case "purged" | "forgotten":
                self._store.request_purge(plan.workflow, execution_id)
                storage.purge(plan.workflow, execution_id)
                self._store.delete(self._fence, execution_id)
                if way == "forgotten":
                    later = datetime.now(UTC) + timedelta(days=1)
                    RetentionView(self._store).delete_ids(self._fence, later)
            case "unmounted":
                folder.rename(folder.with_name("unmounted"))
        try:
            yield
        finally:
            if way == "unmounted":
                folder.with_name("unmounted").rename(folder)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """Serve results below a folder, without Ray."""
    store = ConductorStore(f"sqlite:///{folder}/store.db")
    options = IngressOptions(
        store_url="sqlite://",
        storage={"results_dir": folder / "results", "work_dir": folder / "work"},
        exposed=tuple(plan.workflow for plan in PLANS.values()),
        limits={"max_output_gb": 1.0},
        grid={"n_lat": 19, "n_lon": 36},
        components={plan.workflow: () for plan in PLANS.values()},
    )

    async def no_nudge() -> None:
        pass

    app = create_app(options, store, no_nudge)
    server = _Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        server.is_listening.wait()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Service(f"http://127.0.0.1:{port}", folder, store)
    finally:
        server.should_exit = True
        thread.join()
        store.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()


def values_of(plan: Plan, member: int, time_index: int) -> NDArray[np.float32]:
    """Return the fields of a time step; some values are 0, which no reader may mask."""
    values = fields(plan, member, time_index)
    values[:, ::5] = 0
    return values


def expected_map(plan: Plan, member: int, time_index: int) -> NDArray[np.float32]:
    """Return a map of the first variable as it is stored."""
    values = values_of(plan, member, time_index)[0]
    return np.roll(values, plan.grid.n_lon // 2, axis=-1) if isinstance(plan.grid, Grid) else values


def check_first(plan: Plan, read: dict[str, Any]) -> None:
    """Check what a probe reads first."""
    _check_map(read, expected_map(plan, 0, 0))
    if "hours" in read:
        assert read["hours"] == [plan.step_hours * step for step in range(plan.n_times)]
        grid = plan.grid
        known = (
            {"lat": grid.latitudes(), "lon": grid.output_longitudes()}
            if isinstance(grid, Grid)
            else {"y": grid.y(), "x": grid.x()}
        )
        for name, values in known.items():
            np.testing.assert_array_equal(read["coordinates"][name], values)


def check_last(plan: Plan, read: dict[str, Any]) -> None:
    """Check what a probe reads afterwards."""
    last = expected_map(plan, plan.members[-1], plan.n_times - 1)
    _check_map(read, last)


def _check_map(read: dict[str, Any], expected: NDArray[np.float32]) -> None:
    # Some programs print a map as one list.
    np.testing.assert_array_equal(np.float32(read["map"]).ravel(), expected.ravel())
