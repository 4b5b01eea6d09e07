"""Results on disk survive processes that are killed at any line, and concurrent processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import deployments
from deployments.results.checkpoint import Checkpoint
from deployments.results.disk_work import DiskWork
from tests.deployments.results.backends import DiskBackend
from tests.deployments.results.samples import (
    ID,
    PROVENANCE,
    assert_complete,
    complete,
    make_plan,
    write_steps,
)
from workflows.errors import StageFailed

CODE = str(Path(deployments.__file__).parent)
KILLED = 77
N_KILLS = 40
"""Lines at which each test kills, evenly spread over all executed lines."""

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def run_killed(work: Callable[[], object], at: int) -> int:
    """Run `work` in a process that exits at its n-th line of our code; return its exit status."""
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                # As with SIGKILL no handler, finally clause or buffer flush runs.
                os._exit(KILLED)
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


@pytest.mark.parametrize("output_format", ["zarr", pytest.param("netcdf4", marks=pytest.mark.slow)])
def test_next_attempt_completes_after_a_kill_at_any_line(
    tmp_path: Path, output_format: str
) -> None:
    # Small fields are written by the calling thread, which is the one that is traced.
    plan = make_plan(output_format=output_format, n_steps=1)
    total = count_lines(lambda: complete(DiskBackend(tmp_path / "whole").store(), plan))
    assert total > 10 * N_KILLS
    killed = 0
    for at in range(1, total, total // N_KILLS):
        backend = DiskBackend(tmp_path / str(at))
        status = run_killed(lambda backend=backend: complete(backend.store(), plan), at)  # type: ignore[misc]
        killed += status == KILLED
        listed = complete(backend.store(), plan, 2).output_files
        folder = backend.folder(plan.workflow, ID)
        on_disk = {f"{ID}/{p.relative_to(folder)}" for p in folder.rglob("*") if p.is_file()}
        assert {file.path for file in listed} == on_disk
        check = subprocess.run(
            ["sha256sum", "--strict", "--quiet", "-c", "checksums.sha256"], cwd=folder
        )
        assert check.returncode == 0
        assert_complete(folder, plan)
        backend.store().purge(plan.workflow, ID)
        assert backend.keys(ID) == set()
    assert killed >= N_KILLS - 1


@pytest.mark.slow
def test_next_purge_completes_one_that_was_killed_at_any_line(tmp_path: Path) -> None:
    plan = make_plan(n_steps=0)

    def purge(backend: DiskBackend) -> None:
        backend.store().purge(plan.workflow, ID)

    whole = DiskBackend(tmp_path / "whole")
    complete(whole.store(), plan)
    total = count_lines(lambda: purge(whole))
    for at in range(1, total):
        backend = DiskBackend(tmp_path / str(at))
        complete(backend.store(), plan)
        assert run_killed(lambda backend=backend: purge(backend), at) == KILLED  # type: ignore[misc]
        purge(backend)
        assert backend.keys(ID) == set()


def test_damaged_export_is_never_accepted_after_a_kill_at_any_line_of_its_removal(
    tmp_path: Path,
) -> None:
    plan = make_plan(output_format="netcdf4", n_steps=0)

    def discard(backend: DiskBackend) -> None:
        backend.storage().result(ID, plan, PROVENANCE).discard_export()

    def damaged(name: str) -> DiskBackend:
        backend = DiskBackend(tmp_path / name)
        store = backend.store()
        store.create(plan, ID, PROVENANCE, 1)
        write_steps(store, plan)
        store.export_netcdf(ID, 1)
        backend.write(f"results/{plan.workflow}/{ID}/results.nc", b"damaged")
        return backend

    whole = damaged("whole")
    for at in range(1, count_lines(lambda: discard(whole)) + 1):
        backend = damaged(str(at))
        assert run_killed(lambda backend=backend: discard(backend), at) == KILLED  # type: ignore[misc]
        with suppress(StageFailed):
            complete(backend.store(), plan, 2)
        complete(backend.store(), plan, 2)
        assert_complete(backend.folder(plan.workflow, ID), plan)


def test_processes_may_write_the_same_result_concurrently(tmp_path: Path) -> None:
    plan, backend = make_plan(n_steps=20), DiskBackend(tmp_path)
    backend.store().create(plan, ID, PROVENANCE, 1)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                complete(backend.store(), plan)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert_complete(backend.folder(plan.workflow, ID), plan)


@pytest.mark.parametrize("content", [b"", b'{"plan": {"workf'])
def test_cut_records_of_plan_and_export_count_as_none(tmp_path: Path, content: bytes) -> None:
    plan, backend = make_plan(output_format="netcdf4"), DiskBackend(tmp_path)
    backend.store().create(plan, ID, PROVENANCE, 1)
    (tmp_path / "work" / ID / "plan.json").write_bytes(content)
    with pytest.raises(StageFailed, match="not being written"):
        backend.store().export_netcdf(ID, 1)
    store = backend.store()
    store.create(plan, ID, PROVENANCE, 1)
    write_steps(store, plan)
    store.export_netcdf(ID, 1)
    (tmp_path / "work" / ID / "export.json").write_bytes(content)
    store.export_netcdf(ID, 1)
    store.describe(ID, 1)
    assert_complete(backend.folder(plan.workflow, ID), plan)


def test_a_late_writer_does_not_restore_the_folders_of_a_removed_execution(tmp_path: Path) -> None:
    """A reader would wait for its fields, and a sweep would find it again."""
    plan, backend = make_plan(n_steps=1), DiskBackend(tmp_path)
    backend.store().create(plan, ID, PROVENANCE, 1)
    work = DiskWork(tmp_path / "work" / ID, ID)
    # As in the middle of a removal, which empties one folder after the other.
    for folder in ("conditioning", "checkpoints"):
        (work.path / folder).rmdir()
    checkpoint = Checkpoint(0, "model", np.zeros((1, 2, 2), np.float32), internal={})
    with pytest.raises(StageFailed, match="not being written"):
        work.write_conditioning(0, 0, np.zeros((2, 2), np.float32))
    with pytest.raises(StageFailed, match="not being written"):
        work.write_checkpoint(0, checkpoint)
    assert not {"conditioning", "checkpoints"} & {path.name for path in work.path.iterdir()}
