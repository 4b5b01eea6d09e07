"""The storage backends, for the conformance suite of results."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from deployments.azure.blobs import Blobs
from deployments.azure.options import AzureOptions, CredentialOptions
from deployments.results.blob import BlobStorage
from deployments.results.disk import DiskStorage
from deployments.results.intermediate import IntermediateStore
from deployments.results.options import BlobResultsOptions
from deployments.results.protocols import Storage
from deployments.results.store import ResultsStore
from tests.emulators.azurite import Azurite
from workflows.delivery import Container


class Backend(ABC):
    """A storage backend, with direct access to its objects.

    Keys of objects are paths on disk: ``results/…`` and ``work/…``.
    """

    poll_s: float
    """Pause of exports in tests."""

    @abstractmethod
    def storage(self) -> Storage:
        """Return a new storage, as every replica has its own."""

    def store(self, **options: Any) -> ResultsStore:
        """Return a new store."""
        return ResultsStore(self.storage(), **options)

    def intermediate(self) -> IntermediateStore:
        """Return a new store of intermediate data."""
        return IntermediateStore(self.storage())

    def written_steps(self, execution_id: str) -> set[tuple[int, int]]:
        """Return all (member, time index) that are written."""
        return self.storage().work(execution_id).written_steps()

    @abstractmethod
    def keys(self, execution_id: str) -> set[str]:
        """Return the keys of all objects of an execution."""

    @abstractmethod
    def version(self, key: str) -> object:
        """Return a value that changes when an object is written again."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write an object."""

    @abstractmethod
    def folder(self, workflow: str, execution_id: str) -> Path:
        """Return a folder with all delivered files, or with copies of them."""

    def is_delivered(self, workflow: str, execution_id: str) -> bool:
        """Return whether an execution has any delivered file."""
        start = f"results/{workflow}/{execution_id}/"
        return any(key.startswith(start) for key in self.keys(execution_id))


class DiskBackend(Backend):
    poll_s = 0.001

    def __init__(self, root: Path) -> None:
        self.root = root

    def storage(self) -> DiskStorage:
        storage = DiskStorage(self.root / "results", self.root / "work")
        storage.poll_s = self.poll_s
        return storage

    def keys(self, execution_id: str) -> set[str]:
        paths = self.root.rglob("*")
        return {str(path.relative_to(self.root)) for path in paths if execution_id in str(path)}

    def version(self, key: str) -> object:
        status = (self.root / key).stat()
        return status.st_mtime_ns, status.st_ino

    def remove(self, key: str) -> None:
        (self.root / key).unlink()

    def write(self, key: str, content: bytes) -> None:
        (self.root / key).write_bytes(content)

    def folder(self, workflow: str, execution_id: str) -> Path:
        return self.root / "results" / workflow / execution_id


class BlobBackend(Backend):
    poll_s = 0.01

    def __init__(self, azurite: Azurite, root: Path) -> None:
        self.root = root
        self.azurite = azurite
        container = azurite.new_container("results/of=tests")
        self.options = options_for(azurite, container, root / "scratch")
        self.blobs = Blobs(self.options, threads=2)

    def storage(self) -> BlobStorage:
        storage = BlobStorage(self.options)
        storage.poll_s = self.poll_s
        return storage

    def keys(self, execution_id: str) -> set[str]:
        keys = {_key_of(blob) for blob, _ in self.blobs.list("")}
        return {key for key in keys if execution_id in key}

    def version(self, key: str) -> object:
        return self.blobs.head(_blob_of(key))

    def remove(self, key: str) -> None:
        self.blobs.delete(_blob_of(key))

    def write(self, key: str, content: bytes) -> None:
        self.blobs.put(_blob_of(key), content, "application/octet-stream")

    def folder(self, workflow: str, execution_id: str) -> Path:
        folder = self.root / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        prefix = f"{workflow}/{execution_id}"
        for blob, _ in self.blobs.list(prefix):
            path = folder / blob.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.blobs.get(blob))
        return folder

    def assert_no_scratch(self) -> None:
        scratch = self.root / "scratch"
        assert not scratch.exists() or list(scratch.iterdir()) == []


def _key_of(blob: str) -> str:
    return f"work/{blob.removeprefix('.work/')}" if blob.startswith(".work/") else f"results/{blob}"


def _blob_of(key: str) -> str:
    return key.removeprefix("results/") if key.startswith("results/") else f".{key}"


def options_for(
    azurite: Azurite, container: Container, scratch_dir: Path, **credential: object
) -> BlobResultsOptions:
    """Return options for results in a container of the emulator."""
    azure = AzureOptions(
        credential=CredentialOptions(
            loader="tests.emulators.tokens:EmulatorCredential", options=credential
        ),
        ca_file=azurite.ca_file,
    )
    return BlobResultsOptions(container=container, azure=azure, scratch_dir=scratch_dir)
