"""Processes that write results are killed at every line that they execute."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deployments
from deployments.results.disk import DiskStorage
from deployments.results.manifest import Listing
from deployments.results.store import ResultsStore
from tests.deployments.results.results import PROVENANCE, expected, fields, make_plan
from workflows.base import Plan

ID = "exec_1_00000000"
CODE = str(Path(deployments.__file__).parent)
KILLS = 40
"""Lines at which each test kills, spread evenly over all that are executed."""


def carry_through(root: Path, plan: Plan, fence: int) -> Listing:
    # Small fields are written by the calling thread, which is the one that is killed.
    store = ResultsStore(DiskStorage(root / "results", root / "work"))
    store.create(plan, ID, PROVENANCE, fence)
    for member in plan.members:
        for time_index in range(plan.n_times):
            store.write_step(ID, fence, member, time_index, fields(plan, member, time_index))
    if plan.output_format == "netcdf4":
        store.export_netcdf(ID, fence)
    store.add_file(ID, fence, "preview.png", b"a map")
    return store.describe(ID, fence, extra=["preview.png"])


def run_killed(work: Callable[[], object], at: int) -> int:
    """Do `work` in a process that is gone when it comes to a line; gives the lines executed."""
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                # No handler, no finally clause and no buffer has a chance, as with kill -9.
                os._exit(77)
        return trace

    child = os.fork()
    if child == 0:
        try:
            sys.settrace(trace)
            work()
        finally:
            sys.settrace(None)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_lines(work: Callable[[], object]) -> int:
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename.startswith(CODE) else None

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_killed_at_any_line_the_next_one_finishes(tmp_path: Path, output_format: str) -> None:
    plan = make_plan(output_format=output_format, n_steps=1)
    total = count_lines(lambda: carry_through(tmp_path / "whole", plan, 1))
    assert total > 10 * KILLS
    killed = 0
    for at in range(1, total, total // KILLS):
        root = tmp_path / str(at)
        killed += run_killed(lambda root=root: carry_through(root, plan, 1), at) == 77  # type: ignore[misc]
        listed = carry_through(root, plan, 2).output_files
        folder = root / "results" / plan.workflow / ID
        on_disk = {f"{ID}/{p.relative_to(folder)}" for p in folder.rglob("*") if p.is_file()}
        assert {file.path for file in listed} == on_disk
        check = subprocess.run(
            ["sha256sum", "--strict", "--quiet", "-c", "checksums.sha256"], cwd=folder
        )
        assert check.returncode == 0
        opened = (
            xr.open_zarr(folder / "results.zarr", consolidated=True)
            if output_format == "zarr"
            else xr.open_dataset(folder / "results.nc", engine="netcdf4")
        )
        with opened as dataset:
            for variable in plan.variables:
                np.testing.assert_array_equal(dataset[variable], expected(plan, variable))
        store = ResultsStore(DiskStorage(root / "results", root / "work"))
        store.purge(plan.workflow, ID)
        assert [path for path in root.rglob("*") if ID in str(path)] == []
    assert killed >= KILLS - 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_purge_is_finished_by_the_next(tmp_path: Path) -> None:
    plan = make_plan(n_steps=0)

    def purge(root: Path) -> None:
        ResultsStore(DiskStorage(root / "results", root / "work")).purge(plan.workflow, ID)

    carry_through(tmp_path / "whole", plan, 1)
    total = count_lines(lambda: purge(tmp_path / "whole"))
    for at in range(1, total):
        root = tmp_path / str(at)
        carry_through(root, plan, 1)
        assert run_killed(lambda root=root: purge(root), at) == 77  # type: ignore[misc]
        purge(root)
        assert [path for path in root.rglob("*") if ID in str(path)] == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_write_the_same_at_once_do_no_harm(tmp_path: Path) -> None:
    plan = make_plan(n_steps=20)
    ResultsStore(DiskStorage(tmp_path / "results", tmp_path / "work")).create(
        plan, ID, PROVENANCE, 1
    )
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                carry_through(tmp_path, plan, 1)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    with xr.open_zarr(tmp_path / "results" / plan.workflow / ID / "results.zarr") as dataset:
        for variable in plan.variables:
            np.testing.assert_array_equal(dataset[variable], expected(plan, variable))
