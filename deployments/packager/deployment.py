"""Packager: writes what models compute; exports, describes and removes results.

Replicas keep no state: any of them can write any time step, and may write it twice.
"""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
from numpy.typing import NDArray
from ray import serve

from deployments.packager.preview import render
from deployments.packager.stac_catalog import CatalogUpdater, StaticCatalog
from deployments.results.blob import BlobStorage
from deployments.results.checkpoint import Checkpoint
from deployments.results.disk import DiskStorage
from deployments.results.intermediate import IntermediateStore
from deployments.results.messages import CompletedMembers, StoredExecution
from deployments.results.names import result_folder
from deployments.results.options import StorageOptions
from deployments.results.protocols import Storage
from deployments.results.store import ResultsStore
from deployments.runtime.gpus import hide_gpus
from deployments.runtime.log_context import ContextThreadPool, bind_execution
from deployments.runtime.metrics import PACKAGER_BYTES, RAY, STEPS_WRITTEN, Recorder
from deployments.runtime.priority import lower_priority
from workflows.base import Plan
from workflows.dataset import Origin, Provenance, variable_attributes
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import METADATA, PREVIEW, ZARR, Manifest
from workflows.readiness import ComponentStatus, NotReady, Ready
from workflows.stac.collection import accompanying_collection, default_collection_id
from workflows.stac.item import COLLECTION, ITEM, describe_item

WRITERS = 16
"""Concurrent calls of one replica that write; the settings add those that export."""
EXPORTS = 16
"""Concurrent exports. Others wait: the time steps can be read later."""
PROOFS = 4
"""Results that are read and compared at once. Others wait: models write meanwhile."""
CONDITIONING_WAIT_S = 0.5
"""How long a call waits for a field; it occupies a slot that other calls may need."""
CONDITIONING_POLL_S, CONDITIONING_POLL_IN_BLOB_S = 0.02, 0.1
"""Pause between two reads; in Blob Storage each takes two requests."""


@serve.deployment(
    name="Packager",
    max_ongoing_requests=WRITERS + EXPORTS,
    # Files are written in threads, but on a busy machine their turn at the interpreter comes late.
    health_check_period_s=5,
    health_check_timeout_s=15,
)
class Packager:
    """Owns the folders with results and working files.

    Parameters
    ----------
    options : StorageOptions
        Where to write. A folder also gets a static STAC catalogue.
    """

    def __init__(self, options: StorageOptions, metrics: Recorder = RAY) -> None:
        hide_gpus()
        lower_priority()
        self._metrics = metrics
        self._blob = options.blob
        self._catalog: CatalogUpdater | None = None
        storage: Storage
        if options.blob is not None:
            storage = BlobStorage(options.blob)
            self._conditioning_poll_s = CONDITIONING_POLL_IN_BLOB_S
        else:
            storage = DiskStorage(options.results_dir, options.work_dir)
            self._conditioning_poll_s = CONDITIONING_POLL_S
            self._catalog = CatalogUpdater(StaticCatalog(options.results_dir))
        self._results = ResultsStore(storage)
        self._intermediate = IntermediateStore(storage)
        # Threads of their own: exports wait for time steps, which other threads must write.
        self._exports = ContextThreadPool(EXPORTS, "export")
        # Likewise: models must not wait for proofs of results.
        self._proofs = ContextThreadPool(PROOFS, "proof")

    async def check_readiness(self, name: str) -> ComponentStatus:
        """Return whether results can be stored; `name` identifies their location."""
        try:
            await asyncio.to_thread(self._results.check_available)
        except StageFailed as error:
            return NotReady(reason=error.reason)
        return Ready(origin=Origin(name=name))

    async def create(
        self, plan: Plan, execution_id: str, provenance: Provenance, fence: int
    ) -> CompletedMembers:
        """Create the arrays and metadata of a result, all values missing.

        Returns
        -------
        CompletedMembers
            Members that an earlier attempt has completed; they are kept.
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
        """Write one time step of one member, shape (variable, lat, lon) or (variable, y, x).

        Raises StaleConductor if another Conductor has taken over the execution.
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
        """Keep a field, shape (lat, lon), that conditions a time step of another model."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        await asyncio.to_thread(
            self._intermediate.write_conditioning, execution_id, fence, member, step, field
        )
        self._metrics.add(PACKAGER_BYTES, field.nbytes, kind="conditioning")

    async def read_conditioning(
        self, execution_id: str, member: int, step: int
    ) -> NDArray[np.float32] | None:
        """Return such a field; None if it is not written within half a second."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        for _ in range(round(CONDITIONING_WAIT_S / self._conditioning_poll_s)):
            field = await asyncio.to_thread(
                self._intermediate.read_conditioning, execution_id, member, step
            )
            if field is not None:
                return field
            await asyncio.sleep(self._conditioning_poll_s)
        return None

    async def write_checkpoint(
        self, execution_id: str, fence: int, member: int, checkpoint: Checkpoint
    ) -> None:
        """Keep a checkpoint of a member in place of earlier ones."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        await asyncio.to_thread(
            self._intermediate.write_checkpoint, execution_id, fence, member, checkpoint
        )
        self._metrics.add(PACKAGER_BYTES, checkpoint.nbytes, kind="checkpoint")

    async def read_checkpoint(self, execution_id: str, member: int) -> Checkpoint | None:
        """Return the latest checkpoint of a member up to which all its time steps are written."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        return await asyncio.to_thread(self._intermediate.read_checkpoint, execution_id, member)

    async def remove_checkpoints(self, execution_id: str, fence: int, member: int) -> None:
        """Remove all checkpoints of a member."""
        self._bind_execution(execution_id, Stage.INFERENCE)
        await asyncio.to_thread(self._intermediate.remove_checkpoints, execution_id, fence, member)

    async def export_netcdf(self, execution_id: str, fence: int) -> None:
        """Write the NetCDF4 file as the time steps are written; return when it is complete.

        Cancelling the call stops the export.
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
            # Retrieved, or asyncio would log it as never retrieved.
            export.exception()
            raise

    async def describe_result(self, execution_id: str, fence: int) -> Manifest:
        """Draw a map, check that the result is complete and describe it, also as a STAC item.

        Returns
        -------
        Manifest
            Files, provenance and assets; with a container also the location of the files.

        Raises
        ------
        StageFailed
            If a time step is missing.
        """
        self._bind_execution(execution_id, Stage.PACKAGE)
        return await asyncio.get_running_loop().run_in_executor(
            self._proofs, self._describe_result, execution_id, fence
        )

    def _describe_result(self, execution_id: str, fence: int) -> Manifest:
        plan, provenance = self._results.origin(execution_id)
        field = self._results.read_field(execution_id, plan.variables[0], 0, plan.n_times - 1)
        # If there is none, the map was drawn before: the Zarr store is removed after an export.
        if field is not None:
            image = render(field, plan.variables[0], _title(plan, provenance), plan.grid)
            self._results.add_file(execution_id, fence, PREVIEW, image)
        metadata = _metadata(plan, execution_id, provenance)
        self._results.add_file(execution_id, fence, METADATA, metadata)
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
        for name, document in {ITEM: item, COLLECTION: accompanying_collection(item)}.items():
            content = json.dumps(document, indent=1).encode()
            self._results.add_file(execution_id, fence, name, content)
        extra = [PREVIEW, METADATA, ITEM, COLLECTION]
        files, totals = self._results.describe(execution_id, fence, extra=extra)
        manifest = Manifest(output_files=files, totals=totals, provenance=provenance, assets=assets)
        if self._blob is not None:
            folder = result_folder(plan.workflow, execution_id)
            manifest = manifest.in_container(self._blob.container, folder)
        self._update_catalog(plan.workflow)
        n_bytes = sum(size for key, (size, _) in assets.items() if key != ZARR)
        self._metrics.add(PACKAGER_BYTES, n_bytes, kind="file")
        return manifest

    async def clean(self, execution_id: str) -> None:
        """Remove the working files of an execution."""
        self._bind_execution(execution_id)
        await asyncio.to_thread(self._results.clean, execution_id)

    async def purge(self, workflow: str, execution_id: str) -> None:
        """Remove the results and the working files of an execution."""
        bind_execution(execution_id, workflow)
        await asyncio.to_thread(self._results.purge, workflow, execution_id)
        self._update_catalog(workflow)

    async def stored_executions(self, after: str, limit: int) -> list[StoredExecution]:
        """Return one page of the executions that have files, see `protocols.Storage`."""
        return await asyncio.to_thread(self._results.stored_executions, after, limit)

    def _update_catalog(self, workflow: str) -> None:
        if self._catalog is not None:
            self._catalog.schedule(workflow)

    def _bind_execution(self, execution_id: str, stage: Stage | None = None) -> None:
        # The plan is read only if a line is logged.
        bind_execution(
            execution_id,
            stage=stage,
            find_workflow=lambda: self._results.workflow_of(execution_id),
        )


def _metadata(plan: Plan, execution_id: str, provenance: Provenance) -> bytes:
    """Return the metadata file: what was computed, without the delivery."""
    return json.dumps(
        {
            "execution_id": execution_id,
            "plan": plan.model_dump(mode="json", exclude={"delivery"}),
            "provenance": provenance.model_dump(mode="json"),
        },
        indent=1,
    ).encode()


def _title(plan: Plan, provenance: Provenance) -> str:
    """Return the title of the map of the first member at the last time."""
    name = variable_attributes(plan.variables[0]).get("long_name", plan.variables[0])
    return (
        f"{name}, member 0 of {len(plan.seeds)}, valid {plan.end_time():%Y-%m-%d %H:%M} UTC, "
        f"{plan.n_steps * plan.step_hours} h after {plan.start_time:%Y-%m-%d %H:%M}"
        f"{' (synthetic)' if provenance.synthetic else ''}"
    )
