"""The Packager counts time steps and bytes that were written, not those that were requested."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.packager.deployment import Packager
from deployments.results.options import StorageOptions
from deployments.runtime.metrics import PACKAGER_BYTES, STEPS_WRITTEN
from tests.deployments.results.samples import PROVENANCE, make_plan
from tests.measured import Measured
from workflows.grids import Grid
from workflows.stac.item import COLLECTION, ITEM

EXECUTION = "exec_0123"
TIMEOUT_S = 30.0
"""How long a failure takes; it delays no success."""


@pytest.fixture
def packager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Measured], Any]:
    # The deployment hides GPUs; the test must not change that for others.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    deployment: Any = Packager
    return lambda measured: deployment.func_or_class(
        StorageOptions(results_dir=tmp_path / "results", work_dir=tmp_path / "work"), measured
    )


async def test_step_that_is_written_twice_counts_once(
    packager: Callable[[Measured], Any], tmp_path: Path
) -> None:
    measured = Measured()
    replica = packager(measured)
    plan = make_plan()
    fields = np.ones((len(plan.variables), *plan.grid.shape), np.float32)
    await replica.create(plan, EXECUTION, PROVENANCE, 1)
    for _ in range(2):
        for member in plan.members:
            for time_index in range(plan.n_times):
                await replica.write_step(EXECUTION, 1, member, time_index, fields)
    steps = len(plan.seeds) * plan.n_times
    assert measured.total(STEPS_WRITTEN, workflow=plan.workflow) == steps
    assert measured.total(PACKAGER_BYTES, kind="step") == steps * fields.nbytes
    manifest = await replica.describe_result(EXECUTION, 1)
    folder = tmp_path / "results" / plan.workflow / EXECUTION
    for name in (ITEM, COLLECTION):
        assert f"{EXECUTION}/{name}" in {file.path for file in manifest.output_files}
        for link in json.loads((folder / name).read_text())["links"]:
            assert (folder / link["href"]).is_file()
    sizes = [size for key, (size, _) in manifest.assets.items() if key != "results.zarr"]
    assert len(sizes) == 2
    assert measured.total(PACKAGER_BYTES, kind="file") == sum(sizes)


async def test_models_do_not_wait_for_proofs_of_results(
    packager: Callable[[Measured], Any], tmp_path: Path
) -> None:
    replica = packager(Measured())
    # Fields of this size are written and read by threads of the storage.
    plan = make_plan(n_steps=0, seeds=(7,), grid=Grid(n_lat=181, n_lon=360))
    fields = np.ones((len(plan.variables), *plan.grid.shape), np.float32)
    # As many as the threads of the event loop.
    executions = [f"exec_{number}" for number in range(min(32, (os.cpu_count() or 1) + 4))]
    chunks = []
    for execution_id in [*executions, EXECUTION]:
        await replica.create(plan, execution_id, PROVENANCE, 1)
        if execution_id != EXECUTION:
            await replica.write_step(execution_id, 1, 0, 0, fields)
            folder = tmp_path / "results" / plan.workflow / execution_id
            # Reading it takes until another process writes it.
            chunk = folder / "results.zarr" / plan.variables[1] / "c" / "0" / "0" / "0" / "0"
            chunk.unlink()
            os.mkfifo(chunk)
            chunks.append(chunk)
    proofs = [asyncio.create_task(replica.describe_result(each, 1)) for each in executions]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(chunks)) as pool:
        # Each returns once a proof has begun to read the chunk, which then waits for its content.
        opened = [loop.run_in_executor(pool, os.open, chunk, os.O_WRONLY) for chunk in chunks]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reading = asyncio.as_completed(opened)
                for _ in range(min(4, os.cpu_count() or 1)):
                    await next(reading)
                await replica.write_step(EXECUTION, 1, 0, 0, fields)
            assert not any(proof.done() for proof in proofs)
        finally:
            # Proofs that read find an empty file, and those that have not begun find none.
            held = [os.open(chunk, os.O_RDWR) for chunk in chunks]
            for chunk in chunks:
                chunk.unlink()
            for descriptor in [*held, *await asyncio.gather(*opened)]:
                os.close(descriptor)
            await asyncio.gather(*proofs, return_exceptions=True)
