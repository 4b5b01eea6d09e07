"""What only results in Blob can get wrong; what they share with the disk is in
test_results_store."""

import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest

from deployments.azure.blobs import Blobs
from deployments.azure.options import BlobResultsOptions
from deployments.results.blob import BlobStorage
from deployments.results.checkpoint import Checkpoint
from deployments.results.intermediate import IntermediateStore
from deployments.results.manifest import Listing
from deployments.results.store import ResultsStore
from deployments.runtime.failures import TransientFailure, is_transient
from tests.deployments.results.places import Blob, options_for
from tests.deployments.results.results import PROVENANCE, expected, fields, make_plan
from tests.emulators.azurite import Azurite
from workflows.base import Plan
from workflows.errors import ExecutionCancelled, StageFailed, StaleConductor

ID = "exec_1_00000000"
PLANS = {name: make_plan(n_steps=1, output_format=name) for name in ("zarr", "netcdf4")}


@pytest.fixture
def blob(azurite: Azurite, tmp_path: Path) -> Blob:
    return Blob(azurite, tmp_path)


def carry_through(store: ResultsStore, plan: Plan, fence: int = 1) -> Listing:
    store.create(plan, ID, PROVENANCE, fence)
    write_all(store, plan, fence)
    if plan.output_format == "netcdf4":
        store.export_netcdf(ID, fence)
    store.add_file(ID, fence, "preview.png", b"a map")
    return store.describe(ID, fence, extra=["preview.png"])


def write_all(store: ResultsStore, plan: Plan, fence: int = 1) -> None:
    for member in plan.members:
        for time_index in range(plan.n_times):
            store.write_step(ID, fence, member, time_index, fields(plan, member, time_index))


class Dead(BaseException):
    """What a killed process did not come to."""


class Mortal(Blobs):
    """Dies at one of the calls that change something; nothing comes through after that."""

    def __init__(self, options: BlobResultsOptions, at: int) -> None:
        super().__init__(options, threads=2)
        self._lock = threading.Lock()
        self._at = at
        self.changes = 0

    @property
    def is_dead(self) -> bool:
        return self.changes >= self._at

    def _change(self) -> None:
        with self._lock:
            self.changes += 1
            self._look()

    def _look(self) -> None:
        if self.is_dead:
            raise Dead

    def put(self, *args: Any) -> None:
        self._change()
        super().put(*args)
        self._look()

    def create(self, *args: Any) -> bool:
        self._change()
        return super().create(*args)

    def upload(self, *args: Any) -> bool:
        self._change()
        return super().upload(*args)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._change()
            super().delete(key)

    def remove(self, folder: str) -> None:
        self._look()
        super().remove(folder)

    def head(self, key: str) -> Any:
        self._look()
        return super().head(key)


def mortal(blob: Blob, at: int) -> tuple[ResultsStore, Mortal]:
    blobs = Mortal(blob.options, at)
    return ResultsStore(BlobStorage(blob.options, blobs)), blobs


@pytest.mark.parametrize("output_format", PLANS)
def test_killed_at_any_change_the_next_one_finishes(blob: Blob, output_format: str) -> None:
    plan = PLANS[output_format]
    store, blobs = mortal(blob, 10**6)
    whole = carry_through(store, plan)
    total = blobs.changes
    assert total > 20
    store.purge(plan.workflow, ID)
    for at in range(1, total, 5):
        with pytest.raises(Dead):
            carry_through(mortal(blob, at)[0], plan)
        described = carry_through(store, plan, 2)
        assert described.totals.files == whole.totals.files
        listed = {file.path.removeprefix(f"{ID}/") for file in described.output_files}
        start = f"results/{plan.workflow}/{ID}/"
        assert {f"{start}{name}" for name in listed} == {
            key for key in blob.keys(ID) if key.startswith(start)
        }
        store.purge(plan.workflow, ID)
        assert blob.keys(ID) == set()


WRITER = """
import sys
from deployments.azure.options import BlobResultsOptions
from deployments.results.blob import BlobStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.results import fields
options = BlobResultsOptions.model_validate_json(sys.argv[1])
store = ResultsStore(BlobStorage(options))
plan, _ = store.origin(sys.argv[2])
for time_index in range(plan.n_times):
    for member in plan.members:
        store.write_step(sys.argv[2], 1, member, time_index, fields(plan, member, time_index))
    print(time_index, flush=True)
"""


def test_a_killed_process_is_followed_by_another(blob: Blob) -> None:
    plan = make_plan(n_steps=60)
    store = blob.store()
    store.create(plan, ID, PROVENANCE, 1)
    command = [sys.executable, "-c", WRITER, blob.options.model_dump_json(), ID]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(3):
            assert writer.stdout.readline()
        writer.kill()
    written = blob.written_steps(ID)
    assert 6 <= len(written) < 122
    before = blob.state(f"results/{plan.workflow}/{ID}/results.zarr/t2m/c.0.0.0.0")
    carry_through(blob.store(), plan, 2)
    assert blob.state(f"results/{plan.workflow}/{ID}/results.zarr/t2m/c.0.0.0.0") == before
    assert len(blob.written_steps(ID)) == 122


def test_a_killed_purge_is_finished_by_the_next(blob: Blob) -> None:
    plan = PLANS["zarr"]
    store = blob.store()
    for at in range(1, 6):
        carry_through(store, plan)
        dying, blobs = mortal(blob, at)
        try:
            dying.purge(plan.workflow, ID)
        except Dead:
            assert blobs.is_dead
        # Whoever reads meanwhile finds nothing that looks like a result with holes.
        keys = blob.keys(ID)
        if len(keys) < len(plan.variables):
            assert f"results/{plan.workflow}/{ID}/results.zarr/zarr.json" not in keys
        store.purge(plan.workflow, ID)
        assert blob.keys(ID) == set()


class Slow(Blobs):
    """Does something else before the first blob whose key has a word in it is written."""

    def __init__(
        self, options: BlobResultsOptions, word: str, meanwhile: Callable[[], None]
    ) -> None:
        super().__init__(options)
        self._word = word
        self._meanwhile: Callable[[], None] | None = meanwhile

    def put(self, key: str, *args: Any) -> None:
        self._wait(key)
        super().put(key, *args)

    def upload(self, key: str, *args: Any) -> bool:
        self._wait(key)
        return super().upload(key, *args)

    def _wait(self, key: str) -> None:
        if self._word in key and self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()


CALLS: dict[str, tuple[str, Callable[[ResultsStore, Plan], object]]] = {
    "a fence": ("admission/2", lambda s, p: s.write_step(ID, 2, 0, 0, fields(p, 0, 0))),
    "a chunk": ("t2m/c", lambda s, p: s.write_step(ID, 1, 0, 0, fields(p, 0, 0))),
    "a record": ("steps/0-0", lambda s, p: s.write_step(ID, 1, 0, 0, fields(p, 0, 0))),
    "a store": ("zarr.json", lambda s, p: s.create(p, ID, PROVENANCE, 1)),
    "a map": ("preview.png", lambda s, p: s.add_file(ID, 1, "preview.png", b"")),
    "a field": (
        "conditioning",
        lambda s, p: IntermediateStore(s._storage).write_conditioning(
            ID, 1, 0, 0, np.zeros(3, np.float32)
        ),
    ),
    "a checkpoint": (
        "checkpoints",
        lambda s, p: IntermediateStore(s._storage).write_checkpoint(
            ID, 1, 0, Checkpoint(1, "", np.zeros((1, 2, 2), np.float32), {})
        ),
    ),
    "an export": ("results.nc", lambda s, p: s.export_netcdf(ID, 1)),
    "checksums": ("checksums", lambda s, p: s.describe(ID, 1)),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_was_purged_does_not_come_back(blob: Blob, what: str) -> None:
    plan = PLANS["netcdf4" if what in ("an export", "checksums") else "zarr"]
    other = blob.store()
    word, call = CALLS[what]
    if what != "a store":
        other.create(plan, ID, PROVENANCE, 1)
    if plan.output_format == "netcdf4":
        write_all(other, plan)
    if what == "checksums":
        other.export_netcdf(ID, 1)
    blobs = Slow(blob.options, word, lambda: other.purge(plan.workflow, ID))
    slow = ResultsStore(BlobStorage(blob.options, blobs))
    with pytest.raises(StageFailed, match="not being written"):
        call(slow, plan)
    assert blob.keys(ID) == set()


@pytest.mark.parametrize("what", ["a chunk", "an export", "checksums"])
def test_one_who_comes_late_leaves_a_finished_result_whole(blob: Blob, what: str) -> None:
    plan = PLANS["zarr" if what == "a chunk" else "netcdf4"]
    other = blob.store()
    other.create(plan, ID, PROVENANCE, 1)
    if plan.output_format == "netcdf4":
        write_all(other, plan)
    if what == "checksums":
        other.export_netcdf(ID, 1)

    def finish() -> None:
        carry_through(other, plan, 1)
        other.clean(ID)

    word, call = CALLS[what]
    slow = ResultsStore(BlobStorage(blob.options, Slow(blob.options, word, finish)))
    with pytest.raises(StageFailed, match="not being written"):
        call(slow, plan)
    names = {key.rpartition("/")[2] for key in blob.keys(ID)}
    assert {"checksums.sha256", "preview.png"} < names
    if what == "a chunk":
        assert "c.0.0.0.0" in names
    else:
        assert "results.nc" in names
    assert not any(key.startswith("work/") for key in blob.keys(ID))


# The export


def test_it_follows_the_steps(blob: Blob) -> None:
    plan = PLANS["netcdf4"]
    store = blob.store()
    store.create(plan, ID, PROVENANCE, 1)
    with ThreadPoolExecutor(2) as pool:
        # Two at once: the first whole file stays.
        exports = [pool.submit(store.export_netcdf, ID, 1, poll_s=0.01) for _ in range(2)]
        write_all(store, plan)
        for export in exports:
            export.result(20)
    store.describe(ID, 1)
    folder = blob.folder(plan.workflow, ID)
    assert {path.name for path in folder.iterdir()} == {"results.nc", "checksums.sha256"}
    with netCDF4.Dataset(folder / "results.nc") as file:
        for variable in plan.variables:
            np.testing.assert_array_equal(file[variable][:], expected(plan, variable))
    before = blob.state(f"results/{plan.workflow}/{ID}/results.nc")
    store.export_netcdf(ID, 2)
    assert blob.state(f"results/{plan.workflow}/{ID}/results.nc") == before


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("stopped", ExecutionCancelled),
        ("superseded", StaleConductor),
        ("purged", StageFailed),
    ],
)
def test_it_ends_when_it_is_not_wanted_any_more(
    blob: Blob, what: str, error: type[Exception]
) -> None:
    plan = PLANS["netcdf4"]
    store, stop = blob.store(), threading.Event()
    store.create(plan, ID, PROVENANCE, 1)
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(store.export_netcdf, ID, 1, poll_s=0.01, should_stop=stop.is_set)
        store.write_step(ID, 1, 0, 0, fields(plan, 0, 0))
        if what == "stopped":
            stop.set()
        elif what == "superseded":
            store.create(plan, ID, PROVENANCE, 2)
        else:
            store.purge(plan.workflow, ID)
        with pytest.raises(error):
            export.result(20)


# Conditioning


def test_conditioning_fields_come_back(blob: Blob) -> None:
    plan = PLANS["zarr"]
    store = blob.store()
    with pytest.raises(StageFailed, match="not being written"):
        blob.intermediate().read_conditioning(ID, 0, 0)
    store.create(plan, ID, PROVENANCE, 1)
    assert blob.intermediate().read_conditioning(ID, 0, 0) is None
    field = np.arange(12, dtype=np.float32).reshape(3, 4)
    blob.intermediate().write_conditioning(ID, 1, 0, 0, field)
    found = blob.intermediate().read_conditioning(ID, 0, 0)
    assert found is not None
    np.testing.assert_array_equal(found, field)


# Faults

SECRET = "s3cret-of-the-token"


def failing(blob: Blob, tmp_path: Path, what: str) -> ResultsStore:
    container, credential = blob.options.container, {"secret": SECRET}
    if what == "no container":
        container = container.model_copy(update={"name": "nobody-made-this"})
    elif what == "out of reach":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url = f"https://127.0.0.1:{port}/{container.account}"
        container = container.model_copy(update={"account_url": url})
    elif what == "no token":
        credential["refuse"] = True
    elif what == "expired":
        credential["lifetime_s"] = -60
    options = options_for(blob.azurite, container, tmp_path / "scratch", **credential)
    options = options.model_copy(update={"retry_limit_s": 0.3})
    return ResultsStore(BlobStorage(options))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("no container", "404 ContainerNotFound.*create the container first"),
        ("out of reach", "is unreachable"),
        ("no token", "returned no token.*args.azure.credential"),
        ("expired", "needs the role Storage Blob Data Contributor"),
    ],
)
def test_a_failure_says_what_to_do(blob: Blob, tmp_path: Path, what: str, reason: str) -> None:
    plan = PLANS["netcdf4"]
    store = failing(blob, tmp_path, what)
    calls: list[Callable[[], object]] = [
        lambda: store.create(plan, ID, PROVENANCE, 1),
        lambda: store.write_step(ID, 1, 0, 0, fields(plan, 0, 0)),
        lambda: store._storage.work(ID).written_steps(),
        lambda: store.purge(plan.workflow, ID),
    ]
    for call in calls:
        with pytest.raises(StageFailed, match=reason) as failed:
            call()
        error = failed.value
        assert is_transient(error) == isinstance(error, TransientFailure)
        assert is_transient(error) == (what == "out of reach")
        again = pickle.loads(pickle.dumps(error))
        for text in (str(again), repr(again), repr(error.__cause__)):
            assert "https://" not in text and SECRET not in text and "127.0.0.1" not in text
        assert error.__suppress_context__


def test_a_blob_tells_what_it_is(blob: Blob) -> None:
    plan = PLANS["zarr"]
    carry_through(blob.store(), plan)
    folder = f"{plan.workflow}/{ID}"
    for name, media_type in [
        ("results.zarr/zarr.json", "application/json"),
        ("results.zarr/t2m/c.0.0.0.0", "application/octet-stream"),
        ("preview.png", "image/png"),
        ("checksums.sha256", "text/plain; charset=utf-8"),
    ]:
        found = blob.blobs._obstore.get(blob.blobs._store, f"{folder}/{name}")
        assert found.attributes["Content-Type"] == media_type
        assert len(found.attributes["sha256"]) == 64
