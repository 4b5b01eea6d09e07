"""Azurite, Microsoft's emulator of Blob Storage, over TLS and with tokens."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient

from serve_app.ports import free_port
from tests.emulators.certificates import make_certificate
from workflows.delivery import Container

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The same in every Azurite, and published."""
ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0
SETTINGS = """\
      results_url: az://{account}/forecasts
      azure:
        credential: {{loader: "tests.emulators.tokens:EmulatorCredential"}}
        ca_file: {server.ca_file}
        blob:
          emulator: {server.endpoint}
          # Instead of results_url, for copies of results on a disk:
          # allowed_containers: ["{server.endpoint}/forecasts"]
"""


class Azurite:
    """An Azurite on a free port of 127.0.0.1.

    Parameters
    ----------
    executable : str
        Path from `find_azurite`.
    on_disk : bool
        Whether to keep blobs in files, as Azurite does by default, or in memory, which is faster.
    """

    def __init__(self, executable: str, *, on_disk: bool = False) -> None:
        self._executable = executable
        self._on_disk = on_disk

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="e2s-azurite-"))
        self.certificate = make_certificate(self.folder)
        self.ca_file = self.certificate[0]
        port = free_port()
        self.endpoint = f"https://127.0.0.1:{port}/{ACCOUNT}"
        place = [f"--location={self.folder}"] if self._on_disk else ["--inMemoryPersistence"]
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    self._executable,
                    "--blobHost=127.0.0.1",
                    f"--blobPort={port}",
                    "--oauth=basic",
                    f"--cert={self.certificate[0]}",
                    f"--key={self.certificate[1]}",
                    "--disableTelemetry",
                    "--silent",
                    *place,
                ],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_for(port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def service(self) -> BlobServiceClient:
        """Return a client with all permissions."""
        return BlobServiceClient(self.endpoint, credential=KEY, connection_verify=str(self.ca_file))

    def client(self, container: Container) -> ContainerClient:
        """Return a client of a container with all permissions."""
        return self.service().get_container_client(container.name)

    def new_container(self, prefix: str = "") -> Container:
        """Create an empty container."""
        name = f"test-{uuid4().hex}"
        with self.service() as service:
            service.create_container(name)
        return Container(account_url=self.endpoint, account=ACCOUNT, name=name, prefix=prefix)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"Azurite ended: {(self.folder / 'log').read_text()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


def find_azurite() -> str | None:
    """Return the path of Azurite's executable, or None if there is none."""
    candidates = (
        os.environ.get("AZURITE"),
        str(ROOT / "tests" / "emulators" / "node_modules" / ".bin" / "azurite-blob"),
        str(ROOT / "node_modules" / ".bin" / "azurite-blob"),
        "azurite-blob",
    )
    return next(filter(None, (shutil.which(each) for each in candidates if each)), None)


def main() -> None:
    """Run Azurite until interrupted, and print the settings that a server needs for it."""
    executable = find_azurite()
    if executable is None:
        raise SystemExit("Azurite is missing: npm ci --prefix tests/emulators")
    with Azurite(executable, on_disk=True) as server:
        with server.service() as service:
            service.create_container("forecasts")
        print(SETTINGS.format(server=server, account=ACCOUNT), flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """One Azurite for all tests; each has a container of its own."""
    executable = find_azurite()
    if executable is None:
        pytest.skip(
            "Azurite is missing: npm ci --prefix tests/emulators, or AZURITE=/path/to/azurite-blob"
        )
    with Azurite(executable) as server:
        yield server


if __name__ == "__main__":
    main()
