"""The Packager counts time steps and bytes that were written, not those that were requested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.packager.deployment import Packager
from deployments.results.options import StorageOptions
from deployments.runtime.metrics import PACKAGER_BYTES, STEPS_WRITTEN
from tests.deployments.results.samples import PROVENANCE, make_plan
from tests.measured import Measured
from workflows.stac.item import COLLECTION, ITEM

EXECUTION = "exec_0123"


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
