"""What only results on Blob Storage can get wrong: killed and late writers, faults, media types."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.azure.blobs import Blobs
from deployments.azure.rest import Stored
from deployments.results.blob import BlobStorage
from deployments.results.checkpoint import Checkpoint
from deployments.results.intermediate import IntermediateStore
from deployments.results.options import BlobResultsOptions
from deployments.results.store import ResultsStore
from deployments.runtime.failures import TransientFailure, is_transient
from serve_app.ports import free_port
from tests.deployments.results.backends import BlobBackend, options_for
from tests.deployments.results.samples import (
    ID,
    PROVENANCE,
    complete,
    fields,
    make_plan,
    write_steps,
)
from tests.emulators.azurite import Azurite
from workflows.base import Plan
from workflows.errors import StageFailed

PLANS = {name: make_plan(n_steps=1, output_format=name) for name in ("zarr", "netcdf4")}


@pytest.fixture
def backend(azurite: Azurite, tmp_path: Path) -> BlobBackend:
    return BlobBackend(azurite, tmp_path)


# Killed processes.


class Killed(BaseException):
    """Stands for the end of the process."""


class KilledBlobs(Blobs):
    """Fails at the n-th call that changes a blob, and at every call after that."""

    def __init__(self, options: BlobResultsOptions, at: int) -> None:
        super().__init__(options, threads=2)
        self._lock = threading.Lock()
        self._at = at
        self.changes = 0

    @property
    def is_killed(self) -> bool:
        return self.changes >= self._at

    def _change(self) -> None:
        with self._lock:
            self.changes += 1
            self._check()

    def _check(self) -> None:
        if self.is_killed:
            raise Killed

    def put(self, *args: Any) -> None:
        self._change()
        super().put(*args)
        self._check()

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
        self._check()
        super().remove(folder)

    def head(self, key: str) -> Any:
        self._check()
        return super().head(key)


def killed_store(backend: BlobBackend, at: int) -> tuple[ResultsStore, KilledBlobs]:
    blobs = KilledBlobs(backend.options, at)
    return ResultsStore(BlobStorage(backend.options, blobs)), blobs


@pytest.mark.slow
@pytest.mark.parametrize("output_format", PLANS)
def test_next_attempt_completes_after_a_kill_at_any_change(
    backend: BlobBackend, output_format: str
) -> None:
    plan = PLANS[output_format]
    store, blobs = killed_store(backend, 10**6)
    n_files = complete(store, plan).totals.files
    n_changes = blobs.changes
    assert n_changes > 20
    store.purge(plan.workflow, ID)
    for at in range(1, n_changes, 5):
        with pytest.raises(Killed):
            complete(killed_store(backend, at)[0], plan)
        listing = complete(store, plan, 2)
        assert listing.totals.files == n_files
        listed = {file.path.removeprefix(f"{ID}/") for file in listing.output_files}
        start = f"results/{plan.workflow}/{ID}/"
        assert {f"{start}{name}" for name in listed} == {
            key for key in backend.keys(ID) if key.startswith(start)
        }
        store.purge(plan.workflow, ID)
        assert backend.keys(ID) == set()


WRITER = """
import sys
from deployments.results.options import BlobResultsOptions
from deployments.results.blob import BlobStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.samples import ID, fields
options = BlobResultsOptions.model_validate_json(sys.argv[1])
store = ResultsStore(BlobStorage(options))
plan, _ = store.origin(ID)
for time_index in range(plan.n_times):
    for member in plan.members:
        store.write_step(ID, 1, member, time_index, fields(plan, member, time_index))
    print(time_index, flush=True)
"""


def test_another_process_continues_after_a_kill(backend: BlobBackend) -> None:
    plan = make_plan(n_steps=60)
    backend.store().create(plan, ID, PROVENANCE, 1)
    command = [sys.executable, "-c", WRITER, backend.options.model_dump_json()]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(3):
            assert writer.stdout.readline()
        writer.kill()
    assert 6 <= len(backend.written_steps(ID)) < 122
    chunk = f"results/{plan.workflow}/{ID}/results.zarr/t2m/c/0/0/0/0"
    before = backend.version(chunk)
    complete(backend.store(), plan, 2)
    assert backend.version(chunk) == before
    assert len(backend.written_steps(ID)) == 122


def test_next_purge_completes_one_that_was_killed(backend: BlobBackend) -> None:
    plan = PLANS["zarr"]
    store = backend.store()
    for at in range(1, 6):
        complete(store, plan)
        killed, blobs = killed_store(backend, at)
        try:
            killed.purge(plan.workflow, ID)
        except Killed:
            assert blobs.is_killed
        # Readers must not find a store with missing chunks.
        keys = backend.keys(ID)
        if len(keys) < len(plan.variables):
            assert f"results/{plan.workflow}/{ID}/results.zarr/zarr.json" not in keys
        store.purge(plan.workflow, ID)
        assert backend.keys(ID) == set()


# Late writers.


class DelayedBlobs(Blobs):
    """Calls a function before it writes the first blob whose key contains a given text."""

    def __init__(self, options: BlobResultsOptions, text: str, call: Callable[[], None]) -> None:
        super().__init__(options)
        self._text = text
        self._call: Callable[[], None] | None = call

    def put(self, key: str, *args: Any) -> None:
        self._delay(key)
        super().put(key, *args)

    def upload(self, key: str, *args: Any) -> bool:
        self._delay(key)
        return super().upload(key, *args)

    def _delay(self, key: str) -> None:
        if self._text in key and self._call is not None:
            call, self._call = self._call, None
            call()


CHECKPOINT = Checkpoint(1, "", np.zeros((1, 2, 2), np.float32), {})
CALLS: dict[str, tuple[str, Callable[[BlobStorage, Plan], object]]] = {
    "fence": (
        "admission/2",
        lambda s, p: ResultsStore(s).write_step(ID, 2, 0, 0, fields(p, 0, 0)),
    ),
    "chunk": ("t2m/c", lambda s, p: ResultsStore(s).write_step(ID, 1, 0, 0, fields(p, 0, 0))),
    "record": (
        "steps/0-0",
        lambda s, p: ResultsStore(s).write_step(ID, 1, 0, 0, fields(p, 0, 0)),
    ),
    "zarr": ("zarr.json", lambda s, p: ResultsStore(s).create(p, ID, PROVENANCE, 1)),
    "map": ("preview.png", lambda s, p: ResultsStore(s).add_file(ID, 1, "preview.png", b"")),
    "conditioning": (
        "conditioning",
        lambda s, p: IntermediateStore(s).write_conditioning(ID, 1, 0, 0, np.zeros(3, np.float32)),
    ),
    "checkpoint": (
        "checkpoints",
        lambda s, p: IntermediateStore(s).write_checkpoint(ID, 1, 0, CHECKPOINT),
    ),
    "export": ("results.nc", lambda s, p: ResultsStore(s).export_netcdf(ID, 1)),
    "checksums": ("checksums", lambda s, p: ResultsStore(s).describe(ID, 1)),
}
"""What a late writer writes: text in its key, and the call."""


def prepare(backend: BlobBackend, what: str) -> tuple[ResultsStore, Plan]:
    """Bring an execution to where a call can be made."""
    plan = PLANS["netcdf4" if what in ("export", "checksums") else "zarr"]
    store = backend.store()
    if what != "zarr":
        store.create(plan, ID, PROVENANCE, 1)
    if plan.output_format == "netcdf4":
        write_steps(store, plan)
    if what == "checksums":
        store.export_netcdf(ID, 1)
    return store, plan


def call_late(backend: BlobBackend, what: str, plan: Plan, before: Callable[[], None]) -> None:
    """Make a call whose blob is written after another call has removed the plan."""
    text, call = CALLS[what]
    storage = BlobStorage(backend.options, DelayedBlobs(backend.options, text, before))
    with pytest.raises(StageFailed, match="not being written"):
        call(storage, plan)


@pytest.mark.parametrize("what", CALLS)
def test_late_write_leaves_nothing_of_a_purged_execution(backend: BlobBackend, what: str) -> None:
    store, plan = prepare(backend, what)
    call_late(backend, what, plan, lambda: store.purge(plan.workflow, ID))
    assert backend.keys(ID) == set()


@pytest.mark.parametrize("what", ["chunk", "export", "checksums"])
def test_late_write_leaves_a_complete_result_as_it_is(backend: BlobBackend, what: str) -> None:
    store, plan = prepare(backend, what)

    def complete_and_clean() -> None:
        complete(store, plan)
        store.clean(ID)

    call_late(backend, what, plan, complete_and_clean)
    folder = f"results/{plan.workflow}/{ID}"
    written = "results.zarr/t2m/c/0/0/0/0" if what == "chunk" else "results.nc"
    names = ("checksums.sha256", "preview.png", written)
    assert {f"{folder}/{name}" for name in names} <= backend.keys(ID)
    assert not any(key.startswith("work/") for key in backend.keys(ID))


# Faults.

SECRET = "s3cret-of-the-token"


def failing_storage(backend: BlobBackend, tmp_path: Path, fault: str) -> BlobStorage:
    container, credential = backend.options.container, {"secret": SECRET}
    if fault == "no container":
        container = container.model_copy(update={"name": "never-created"})
    elif fault == "unreachable":
        port = free_port()
        url = f"https://127.0.0.1:{port}/{container.account}"
        container = container.model_copy(update={"account_url": url})
    elif fault == "no token":
        credential["refuse"] = True
    elif fault == "expired":
        credential["lifetime_s"] = -60
    options = options_for(backend.azurite, container, tmp_path / "scratch", **credential)
    return BlobStorage(options.model_copy(update={"retry_limit_s": 0.3}))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no container", "404 ContainerNotFound.*create the container first"),
        ("unreachable", "is unreachable"),
        ("no token", "returned no token.*args.azure.credential"),
        ("expired", "needs the role Storage Blob Data Contributor"),
    ],
)
def test_failure_names_the_remedy_and_no_secret(
    backend: BlobBackend, tmp_path: Path, fault: str, reason: str
) -> None:
    plan = PLANS["netcdf4"]
    storage = failing_storage(backend, tmp_path, fault)
    store = ResultsStore(storage)
    calls: list[Callable[[], object]] = [
        store.check_available,
        lambda: store.create(plan, ID, PROVENANCE, 1),
        lambda: store.write_step(ID, 1, 0, 0, fields(plan, 0, 0)),
        lambda: storage.work(ID).written_steps(),
        lambda: store.purge(plan.workflow, ID),
    ]
    for call in calls:
        with pytest.raises(StageFailed, match=reason) as failed:
            call()
        error = failed.value
        assert is_transient(error) == isinstance(error, TransientFailure)
        assert is_transient(error) == (fault == "unreachable")
        unpickled = pickle.loads(pickle.dumps(error))
        for text in (str(unpickled), repr(unpickled), repr(error.__cause__)):
            assert "https://" not in text and SECRET not in text and "127.0.0.1" not in text
        assert error.__suppress_context__


class CountedListings(Blobs):
    """Notes how many blobs each listing has."""

    def __init__(self, options: BlobResultsOptions) -> None:
        super().__init__(options, threads=2)
        self.listed: list[int] = []

    def describe(self, *folders: str) -> dict[str, Stored]:
        found = super().describe(*folders)
        self.listed.append(len(found))
        return found


@pytest.mark.parametrize("layout", ["time", "lead_time"])
@pytest.mark.parametrize("separator", ["/", "."])
def test_a_proof_holds_the_listing_of_one_member(
    backend: BlobBackend, layout: str, separator: str
) -> None:
    plan = make_plan(seeds=(7, 8, 9), time_layout=layout)
    blobs = CountedListings(backend.options)
    storage = BlobStorage(backend.options, blobs)
    store = ResultsStore(storage)
    store.create(plan, ID, PROVENANCE, 1)
    result = replace(storage.result(ID, plan, PROVENANCE), separator=separator)
    steps = [(member, time) for member in plan.members for time in range(plan.n_times)]
    for step in steps:
        result.work.record_step(*step, result.write_step(*step, fields(plan, *step)))
    assert list(result.check_steps(steps)) == [result.recorded(*step) for step in steps]
    of_member = plan.n_times * len(plan.variables)
    if separator == "/":
        assert blobs.listed == [of_member] * 3
    else:
        # Of an earlier release, without folders; with the metadata of both variables.
        assert blobs.listed == [3 * of_member + 2]


def test_blobs_have_media_types_and_checksums(backend: BlobBackend) -> None:
    plan = PLANS["zarr"]
    complete(backend.store(), plan)
    for name, media_type in [
        ("results.zarr/zarr.json", "application/json"),
        ("results.zarr/t2m/c/0/0/0/0", "application/octet-stream"),
        ("preview.png", "image/png"),
        ("checksums.sha256", "text/plain; charset=utf-8"),
    ]:
        key = f"{plan.workflow}/{ID}/{name}"
        found = backend.blobs._obstore.get(backend.blobs._store, key)
        assert found.attributes["Content-Type"] == media_type
        assert len(found.attributes["sha256"]) == 64
