"""Places where results lie, for the conformance suite of the results store."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.azure.blobs import Blobs
from deployments.azure.options import AzureOptions, BlobResultsOptions
from deployments.results.blob import BlobStorage
from deployments.results.disk import DiskStorage
from deployments.results.intermediate import IntermediateStore
from deployments.results.protocols import Storage
from deployments.results.store import ResultsStore
from tests.emulators.azurite import Azurite
from workflows.delivery import Container

PLACES = ["disk", "blob"]


class Place(ABC):
    """A place, seen from beside the store."""

    @abstractmethod
    def storage(self) -> Storage:
        """Return a new storage, as every replica has its own."""

    def store(self, **options: Any) -> ResultsStore:
        """Return a new store, as every replica has its own."""
        return ResultsStore(self.storage(), **options)

    def intermediate(self) -> IntermediateStore:
        """Return a new store of intermediate data."""
        return IntermediateStore(self.storage())

    def written_steps(self, execution_id: str) -> set[tuple[int, int]]:
        """Return all (member, time index) that are written."""
        return self.storage().work(execution_id).written_steps()

    @abstractmethod
    def keys(self, execution_id: str) -> set[str]:
        """Name all that there is of an execution."""

    @abstractmethod
    def state(self, key: str) -> object:
        """Give what changes when an object is written anew."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write an object."""

    @abstractmethod
    def folder(self, workflow: str, execution_id: str) -> Path:
        """Give a folder with all that is delivered; one that is read need not be where it lies."""

    def is_delivered(self, workflow: str, execution_id: str) -> bool:
        """Say whether anything is delivered."""
        start = f"results/{workflow}/{execution_id}/"
        return any(key.startswith(start) for key in self.keys(execution_id))


class Disk(Place):
    def __init__(self, root: Path) -> None:
        self.root = root

    def storage(self) -> DiskStorage:
        return DiskStorage(self.root / "results", self.root / "work")

    def keys(self, execution_id: str) -> set[str]:
        paths = self.root.rglob("*")
        return {str(path.relative_to(self.root)) for path in paths if execution_id in str(path)}

    def state(self, key: str) -> object:
        status = (self.root / key).stat()
        return status.st_mtime_ns, status.st_ino

    def remove(self, key: str) -> None:
        (self.root / key).unlink()

    def write(self, key: str, content: bytes) -> None:
        (self.root / key).write_bytes(content)

    def folder(self, workflow: str, execution_id: str) -> Path:
        return self.root / "results" / workflow / execution_id


class Blob(Place):
    def __init__(self, azurite: Azurite, root: Path) -> None:
        self.root = root
        self.azurite = azurite
        container = azurite.new_container("results/of=tests")
        self.options = options_for(azurite, container, root / "scratch")
        self.blobs = Blobs(self.options, threads=2)

    def storage(self) -> BlobStorage:
        return BlobStorage(self.options)

    def keys(self, execution_id: str) -> set[str]:
        keys = {_outside(key) for key, _ in self.blobs.list("")}
        return {key for key in keys if execution_id in key}

    def state(self, key: str) -> object:
        return self.blobs.head(_inside(key))

    def remove(self, key: str) -> None:
        self.blobs.delete(_inside(key))

    def write(self, key: str, content: bytes) -> None:
        self.blobs.put(_inside(key), content, "application/octet-stream")

    def folder(self, workflow: str, execution_id: str) -> Path:
        folder = self.root / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        inside = f"{workflow}/{execution_id}"
        for key, _ in self.blobs.list(inside):
            path = folder / key.removeprefix(f"{inside}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.blobs.get(key))
        return folder


def _outside(key: str) -> str:
    """Name a blob as the disk would."""
    return f"work/{key.removeprefix('.work/')}" if key.startswith(".work/") else f"results/{key}"


def _inside(key: str) -> str:
    return key.removeprefix("results/") if key.startswith("results/") else f".{key}"


def options_for(
    azurite: Azurite, container: Container, scratch_dir: Path, **credential: object
) -> BlobResultsOptions:
    """Give what it takes to keep results in a container."""
    azure = AzureOptions(
        credential="tests.emulators.tokens:EmulatorCredential",
        credential_options=credential,
        ca_file=azurite.ca_file,
    )
    return BlobResultsOptions(container=container, azure=azure, scratch_dir=scratch_dir)


def make_place(kind: str, root: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Make a place; after the test nothing is left of what was on its way."""
    if kind == "disk":
        yield Disk(root)
        return
    yield Blob(request.getfixturevalue("azurite"), root)
    scratch = root / "scratch"
    assert not scratch.exists() or list(scratch.iterdir()) == []
