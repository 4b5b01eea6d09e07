"""A server on which an execution is retried, another one fails, and a request is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.azure_setup import FORECAST, AzureSetup
from tests.integration.serving import Server, served

NAME = "failures"
PARAMETERS: dict[str, Any] = {
    "n_steps": 2,
    "seeds": [1],
    "variables": ["t2m"],
    "output_format": "zarr",
}
ITEMS = r"/items$"
LIMIT_S = 120.0


@dataclass(frozen=True)
class Failures:
    """What happened, each once."""

    retried: str
    """Execution that was delivered although the process that registered it died."""
    failed: str
    """Execution that was uploaded, and that the GeoCatalog refused."""
    blobs: int
    """Number of blobs in the container."""


@contextmanager
def failures(azurite: Azurite, http_port: int, folder: Path) -> Iterator[Failures]:
    """Serve an application of its own and let the failures happen."""
    with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
        azure = AzureSetup(azurite, catalog, folder)
        args = azure.args | {
            "workflows": {"exposed": [FORECAST]},
            "queue": {"max_size": 1, "max_running": 1},
        }
        with served(args, NAME, http_port) as server:
            retried = _kill_during_registration(server, azure)
            refusal = {"error": {"code": "Forbidden", "message": "no role here"}}
            catalog.fail_next("POST", ITEMS, status=403, body=refusal)
            failed = server.submit(**PARAMETERS, **azure.delivery)
            assert server.finished(failed)["status"] == "failed"
            _fill_the_queue(server)
            yield Failures(retried, failed, len(list(azure.blobs().list_blobs())))


def _kill_during_registration(server: Server, azure: AzureSetup) -> str:
    """Kill the GeoCatalog deployment while it registers an execution; return the execution."""
    azure.catalog.fail_next("POST", ITEMS, delay_s=LIMIT_S)
    execution_id = server.submit(**PARAMETERS, **azure.delivery)
    deadline = time.monotonic() + LIMIT_S
    while not azure.catalog.calls("POST", ITEMS):
        assert time.monotonic() < deadline, server.status(execution_id)
        time.sleep(0.05)
    server.kill("GeoCatalog")
    server.completed(execution_id)
    return execution_id


def _fill_the_queue(server: Server) -> None:
    """Submit until a request is refused, and wait for the accepted ones."""
    accepted = []
    for _ in range(100):
        response = server.http.post(f"/v1/infer/{FORECAST}", json={"parameters": PARAMETERS})
        if response.status_code == 429:
            break
        accepted.append(response.json()["execution_id"])
    assert response.status_code == 429, response.text
    for execution_id in accepted:
        server.completed(execution_id)
