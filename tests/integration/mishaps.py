"""A server to which happens what metrics shall tell of: retry, failure, refusal, delivery."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.azure_places import FORECAST, Azure
from tests.integration.serving import Server, served

NAME = "mishaps"
ASKED: dict[str, Any] = {"n_steps": 2, "seeds": [1], "variables": ["t2m"], "output_format": "zarr"}
ITEMS = r"/items$"
LIMIT_S = 120.0


@dataclass(frozen=True)
class Mishaps:
    """What has happened; all of it once."""

    retried: str
    """Delivered, although the process died that registered it."""
    failed: str
    """Uploaded, and refused by the GeoCatalog."""
    blobs: int


@contextmanager
def mishaps(azurite: Azurite, http_port: int, folder: Path) -> Iterator[Mishaps]:
    """Let them happen to a server of their own, which is there until the end."""
    with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
        azure = Azure(azurite, catalog, folder)
        args = azure.args | {
            "workflows": {"exposed": [FORECAST]},
            "queue": {"max_size": 1, "max_running": 1},
        }
        with served(args, NAME, http_port) as server:
            retried = _lose_who_registers(server, azure)
            refusal = {"error": {"code": "Forbidden", "message": "no role here"}}
            catalog.fail_next("POST", ITEMS, status=403, body=refusal)
            failed = server.submit(**ASKED, **azure.delivery)
            assert server.finished(failed, LIMIT_S)["status"] == "failed"
            _fill_the_queue(server)
            yield Mishaps(retried, failed, len(list(azure.blobs().list_blobs())))


def _lose_who_registers(server: Server, azure: Azure) -> str:
    """Have an execution delivered, and kill its registration in the middle."""
    azure.catalog.fail_next("POST", ITEMS, delay_s=LIMIT_S)
    execution_id = server.submit(**ASKED, **azure.delivery)
    deadline = time.monotonic() + LIMIT_S
    while not azure.catalog.calls("POST", ITEMS):
        assert time.monotonic() < deadline, server.status(execution_id)
        time.sleep(0.05)
    [pid] = server.pids("GeoCatalog")
    os.kill(pid, signal.SIGKILL)
    ended = server.finished(execution_id, LIMIT_S)
    assert ended["status"] == "completed", ended["error_message"]
    return execution_id


def _fill_the_queue(server: Server) -> None:
    """Submit until there is no room; what was accepted ends."""
    accepted = []
    for _ in range(100):
        answer = server.http.post(f"/v1/infer/{FORECAST}", json={"parameters": ASKED})
        if answer.status_code == 429:
            break
        accepted.append(answer.json()["execution_id"])
    assert answer.status_code == 429, answer.text
    for execution_id in accepted:
        assert server.finished(execution_id, LIMIT_S)["status"] == "completed"
