"""Packager: writes what models compute, exports, describes and removes it.

Replicas keep no state: any of them can write any step, and twice is harmless.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.azure.blobs import BlobResultsOptions
from deployments.packager.catalog_keeper import CatalogUpdater
from deployments.packager.preview import render
from deployments.packager.stac_catalog import StaticCatalog
from deployments.results.blob import BlobStorage
from deployments.results.blob_result import result_folder
from deployments.results.checkpoint import Checkpoint
from deployments.results.disk import DiskStorage
from deployments.results.disk_result import ZARR
from deployments.results.protocols import StoredExecution
from deployments.results.store import Begun, ResultsStore
from deployments.runtime.gpus import hide_gpus
from deployments.runtime.log_context import ContextThreadPool, bind_execution
from deployments.runtime.metrics import PACKAGER_BYTES, RAY, STEPS_WRITTEN, Recorder
from workflows.base import Plan
from workflows.dataset import Origin, Provenance, variable_attributes
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.grids import LambertGrid
from workflows.manifest import Manifest
from workflows.readiness import ComponentStatus, NotReady, Ready
from workflows.stac.collection import default_collection_id
from workflows.stac.item import ITEM, describe_item

PREVIEW = "preview.png"
"""A map of the result's first variable: the first member at the last time."""
METADATA = "metadata.json"
"""What was computed, with what."""

WRITERS = 16
"""Calls of one replica at once that write; the settings add what exports may take."""
EXPORTS = 16
"""That work at once. What waits loses nothing: its steps are written, and read later."""
CONDITIONING_WAIT_S = 0.5
"""A call that waits keeps a place that others may need."""
CONDITIONING_PAUSE_S, CONDITIONING_PAUSE_IN_BLOB_S = 0.02, 0.1
"""Between two looks; in Blob Storage each is two requests."""


@serve.deployment(name="Packager", max_ongoing_requests=WRITERS + EXPORTS)
class Packager:
    """Owns the folders with results and working files.

    Parameters
    ----------
    results : Path or BlobResultsOptions
        Where results lie: a folder that every replica sees, with a static catalogue of them, or a
        container.
    work_dir : Path
        Folder for working files that every replica sees; in a container they lie there, too.
    metrics : Recorder
    """

    def __init__(
        self, results: Path | BlobResultsOptions, work_dir: Path, metrics: Recorder = RAY
    ) -> None:
        hide_gpus()
        self._metrics = metrics
        self._blob = results if isinstance(results, BlobResultsOptions) else None
        self._catalog: CatalogUpdater | None = None
        self._pause_s = CONDITIONING_PAUSE_IN_BLOB_S
        if isinstance(results, BlobResultsOptions):
            self._results = ResultsStore(BlobStorage(results))
        else:
            self._results = ResultsStore(DiskStorage(results, work_dir))
            self._catalog = CatalogUpdater(StaticCatalog(results))
            self._pause_s = CONDITIONING_PAUSE_S
        # Of their own: an export waits for steps, and would keep a thread from writing them.
        self._exports = ContextThreadPool(EXPORTS, "export")

    async def check_readiness(self, place: str) -> ComponentStatus:
        """Return whether results can be written to where they are stored."""
        try:
            await asyncio.to_thread(self._results.look)
        except StageFailed as error:
            return NotReady(reason=error.reason)
        return Ready(origin=Origin(name=place))

    async def create(
        self, plan: Plan, execution_id: str, provenance: Mapping[str, Any], fence: int
    ) -> Begun:
        """Create the arrays and metadata of a result, all values missing.

        Returns
        -------
        Begun
            What an earlier attempt has left whole; it stays.
        """
        bind_execution(execution_id, plan.workflow, Stage.PACKAGE)
        return await asyncio.to_thread(self._results.create, plan, execution_id, provenance, fence)

    async def write_step(
        self,
        execution_id: str,
        fence: int,
        member: int,
        time_index: int,
        fields: NDArray[np.float32],
    ) -> None:
        """Write one time of one member, shape (variable, lat, lon) or (variable, y, x).

        Raises
        ------
        StaleConductor
            If another Conductor has taken the execution over.
        """
        self._bind_execution(execution_id, Stage.INFERENCE)
        written = await asyncio.to_thread(
            self._results.write_step, execution_id, fence, member, time_index, fields
        )
        if written is not None:
            self._metrics.add(STEPS_WRITTEN, workflow=written.workflow)
            self._metrics.add(PACKAGER_BYTES, written.bytes, kind="step")

    async def write_conditioning(
        self,
        execution_id: str,
        fence: int,
        member: int,
        step: int,
        field: NDArray[np.float32],
    ) -> None:
        """Keep a field, shape (lat, lon), that conditions a step of another model's forecast."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        await asyncio.to_thread(
            self._results.write_conditioning, execution_id, fence, member, step, field
        )
        self._metrics.add(PACKAGER_BYTES, field.nbytes, kind="conditioning")

    async def read_conditioning(
        self, execution_id: str, member: int, step: int
    ) -> NDArray[np.float32] | None:
        """Give such a field, waiting a moment for it; None if it has not come by then."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        for _ in range(round(CONDITIONING_WAIT_S / self._pause_s)):
            field = await asyncio.to_thread(
                self._results.read_conditioning, execution_id, member, step
            )
            if field is not None:
                return field
            await asyncio.sleep(self._pause_s)
        return None

    async def write_checkpoint(
        self, execution_id: str, fence: int, member: int, checkpoint: Checkpoint
    ) -> None:
        """Keep the state of a member's model, in place of earlier ones."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        await asyncio.to_thread(
            self._results.write_checkpoint, execution_id, fence, member, checkpoint
        )
        self._metrics.add(PACKAGER_BYTES, checkpoint.nbytes, kind="checkpoint")

    async def read_checkpoint(self, execution_id: str, member: int) -> Checkpoint | None:
        """Give the last checkpoint of a member up to which all its steps are written, if any."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        return await asyncio.to_thread(self._results.read_checkpoint, execution_id, member)

    async def drop_checkpoints(self, execution_id: str, fence: int, member: int) -> None:
        """Remove the checkpoints of a member that is whole."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        await asyncio.to_thread(self._results.drop_checkpoints, execution_id, fence, member)

    async def export_netcdf(self, execution_id: str, fence: int) -> None:
        """Write the NetCDF4 file, following the steps as they are written; ends when it is whole.

        A caller that goes away stops it.
        """
        self._bind_execution(execution_id, Stage.PACKAGE)
        stop = threading.Event()
        export = asyncio.get_running_loop().run_in_executor(
            self._exports,
            lambda: self._results.export_netcdf(execution_id, fence, should_stop=stop.is_set),
        )
        try:
            await asyncio.shield(export)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({export})
            # Looked at, or it would be logged as one that nobody has seen.
            export.exception()
            raise

    async def describe_result(self, execution_id: str, fence: int) -> Manifest:
        """Draw a map, check that the result is whole and describe it, also as a STAC item.

        Returns
        -------
        Manifest
            Files, provenance and assets; for results in a container also where they lie there.

        Raises
        ------
        StageFailed
            If a step is missing.
        """
        self._bind_execution(execution_id, Stage.PACKAGE)
        return await asyncio.to_thread(self._describe_result, execution_id, fence)

    def _describe_result(self, execution_id: str, fence: int) -> Manifest:
        plan, provenance = self._results.recorded(execution_id)
        field = self._results.read_field(execution_id, plan.variables[0], 0, plan.n_times - 1)
        # A field that is gone was drawn before: its Zarr is removed after the export.
        if field is not None:
            grid = plan.grid if isinstance(plan.grid, LambertGrid) else None
            drawing = render(field, plan.variables[0], _caption(plan, provenance), grid)
            self._results.add_file(execution_id, fence, PREVIEW, drawing)
        self._results.add_file(
            execution_id, fence, METADATA, _metadata(plan, execution_id, provenance)
        )
        found = self._results.assets(execution_id, [PREVIEW, METADATA])
        assets = {key: (asset.size, asset.sha256) for key, asset in found.items()}
        item = describe_item(
            plan,
            execution_id,
            provenance,
            assets,
            collection_id=default_collection_id(plan.workflow),
            base_href=".",
        )
        self._results.add_file(execution_id, fence, ITEM, json.dumps(item, indent=1).encode())
        files, totals = self._results.finish(execution_id, fence, extra=[PREVIEW, METADATA, ITEM])
        manifest = Manifest(output_files=files, totals=totals, provenance=provenance, assets=assets)
        if self._blob is not None:
            folder = result_folder(plan.workflow, execution_id)
            manifest = manifest.in_container(self._blob.container, folder)
        self._refresh_catalog(plan.workflow)
        beside = sum(size for key, (size, _) in assets.items() if key != ZARR)
        self._metrics.add(PACKAGER_BYTES, beside, kind="file")
        return manifest

    async def purge(self, workflow: str, execution_id: str) -> None:
        """Remove an execution's results and working files."""
        bind_execution(execution_id, workflow)
        await asyncio.to_thread(self._results.purge, workflow, execution_id)
        self._refresh_catalog(workflow)

    def _refresh_catalog(self, workflow: str) -> None:
        if self._catalog is not None:
            self._catalog.refresh(workflow)

    async def clean(self, execution_id: str) -> None:
        """Remove an execution's working files."""
        self._bind_execution(execution_id)
        await asyncio.to_thread(self._results.clean, execution_id)

    def _bind_execution(self, execution_id: str, stage: Stage | None = None) -> None:
        # The plan is read only if there is a line to write.
        bind_execution(
            execution_id,
            stage=stage,
            find_workflow=lambda: self._results.workflow_of(execution_id),
        )

    async def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """List of which executions there are files, see `deployments.results.protocols.Storage`."""
        return await asyncio.to_thread(self._results.stored_executions, after, limit)


def _metadata(plan: Plan, execution_id: str, provenance: Provenance) -> bytes:
    """Tell what was computed; where else it goes is not part of it."""
    return json.dumps(
        {
            "execution_id": execution_id,
            "plan": plan.model_dump(mode="json", exclude={"delivery"}),
            "provenance": provenance.model_dump(mode="json"),
        },
        indent=1,
    ).encode()


def _caption(plan: Plan, provenance: Provenance) -> str:
    name = variable_attributes(plan.variables[0]).get("long_name", plan.variables[0])
    return (
        f"{name}, member 0 of {len(plan.seeds)}, valid {plan.end_time():%Y-%m-%d %H:%M} UTC, "
        f"{plan.n_steps * plan.step_hours} h after {plan.start_time:%Y-%m-%d %H:%M}"
        f"{' (synthetic)' if provenance.synthetic else ''}"
    )
