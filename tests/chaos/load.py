"""Clients that request forecasts under all faults, and record the accepted executions."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from workflows.fcn3 import FCN3Workflow
from workflows.stormscope import StormScopeWorkflow

FORECAST, NOWCAST = FCN3Workflow.name, StormScopeWorkflow.name
START = "2025-01-01T00:00:00"
PAUSE_S = 0.3
READ_PAUSE_S = 0.05
DENIALS = (404, 409, 410)
"""Statuses that say that something does not exist. Clients ask only for what does."""
GIVE_UP_S = 600.0


@dataclass
class Accepted:
    """An execution that the server has accepted."""

    workflow: str
    execution_id: str
    parameters: dict[str, Any]


@dataclass
class Load:
    """Clients that keep a number of executions in flight.

    Parameters
    ----------
    base_url : str
        May be changed at any time.
    in_flight : int
        Number of concurrent executions.
    delivery : mapping
        Parameters for the delivery of results.
    nowcasts : bool
        Whether some executions are nowcasts.
    seed : int
    """

    base_url: str
    in_flight: int
    delivery: Mapping[str, Any]
    nowcasts: bool
    seed: int
    accepted: list[Accepted] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    """Number of failed requests, by kind."""
    outages: dict[str, float] = field(default_factory=dict)
    """Longest time from a request's first failure to its answer, seconds, by kind of failure."""
    refused: list[str] = field(default_factory=list)
    """Final refusals, of which there should be none."""
    denied: list[str] = field(default_factory=list)
    """Answers that deny what exists, of which there should be none."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._random = random.Random(self.seed)  # noqa: S311
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"client-{n}") for n in range(self.in_flight)
        ]
        self._threads.append(threading.Thread(target=self._read, name="reader"))

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit no more, and wait until all accepted executions have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        with httpx.Client(timeout=30) as http:
            while not self._stop.is_set():
                with self._lock:
                    number = next(self._numbers)
                    workflow, parameters = self._request(number)
                execution_id = self._submit(http, number, workflow, parameters)
                if execution_id is None:
                    continue
                with self._lock:
                    self.accepted.append(Accepted(workflow, execution_id, parameters))
                status = self._follow(http, workflow, execution_id)
                with self._lock:
                    self.ended[execution_id] = status

    def _read(self) -> None:
        """Read statuses and results of accepted executions, whatever happens to the server."""
        chance = random.Random(self.seed)  # noqa: S311
        with httpx.Client(timeout=30) as http:
            while not self._stop.wait(READ_PAUSE_S):
                with self._lock:
                    one = chance.choice(self.accepted) if self.accepted else None
                    ended = one and self.ended.get(one.execution_id, {})
                if one is None:
                    continue
                path = "results" if ended and ended["status"] == "completed" else "status"
                url = f"/v1/infer/{one.workflow}/{one.execution_id}/{path}"
                self._retry(
                    lambda url=url: http.get(f"{self.base_url}{url}"),  # type: ignore[misc]
                    lambda response: response.status_code == 200,
                )

    def _request(self, number: int) -> tuple[str, dict[str, Any]]:
        output_format = self._random.choice(["zarr", "netcdf4"])
        common = {"output_format": output_format, **self.delivery}
        if self.nowcasts and number % 4 == 3:
            # All nowcasts are the same, so one without faults gives the expected result.
            return NOWCAST, nowcast(common)
        # All members have different seeds, which identify their steps in the journal.
        members = self._random.randint(1, 3)
        return FORECAST, {
            "start_time": START,
            "n_steps": self._random.randint(3, 8),
            "seeds": [10 * number + member for member in range(members)],
            "variables": ["t2m", "z500"],
            **common,
        }

    def _submit(
        self, http: httpx.Client, number: int, workflow: str, parameters: Mapping[str, Any]
    ) -> str | None:
        """Submit until there is a response; the key makes it one execution."""
        headers = {"Idempotency-Key": f"chaos-{self.seed}-{number}"}

        def submit() -> httpx.Response:
            body = {"parameters": dict(parameters)}
            return http.post(f"{self.base_url}/v1/infer/{workflow}", json=body, headers=headers)

        response = self._retry(submit, lambda response: response.status_code < 429)
        if response.status_code == 200:
            execution_id: str = response.json()["execution_id"]
            return execution_id
        self.refused.append(f"{response.status_code} {response.text[:300]}")
        return None

    def _follow(self, http: httpx.Client, workflow: str, execution_id: str) -> dict[str, Any]:
        def read_status() -> httpx.Response:
            path = f"/v1/infer/{workflow}/{execution_id}/status"
            return http.get(f"{self.base_url}{path}", params={"wait": 5})

        deadline = time.monotonic() + GIVE_UP_S
        while True:
            response = self._retry(read_status, lambda response: response.status_code in (200, 404))
            if response.status_code == 404:
                return {"status": "unknown to the server", "end_time": None}
            status: dict[str, Any] = response.json()
            if status["end_time"] is not None or time.monotonic() > deadline:
                return status

    def _retry(
        self, request: Callable[[], httpx.Response], is_final: Callable[[httpx.Response], bool]
    ) -> httpx.Response:
        started = time.monotonic()
        deadline = started + GIVE_UP_S
        failed: dict[str, None] = {}
        while True:
            try:
                response = request()
                # Serve itself responds before the application is deployed and without a replica.
                ours = response.headers.get("content-type", "").startswith("application/json")
                if response.status_code in DENIALS:
                    with self._lock:
                        self.denied.append(
                            f"{response.status_code} {response.url}: {response.text}"
                        )
                if ours and is_final(response):
                    self._note_outages(failed, time.monotonic() - started)
                    return response
                kind = f"{response.status_code}{'' if ours else ' of Serve'}"
            except httpx.TransportError as error:
                kind = type(error).__name__
            failed[kind] = None
            with self._lock:
                self.errors[kind] += 1
            if time.monotonic() > deadline:
                raise TimeoutError(f"no response for {GIVE_UP_S:g} s, last failure: {kind}")
            time.sleep(PAUSE_S)

    def _note_outages(self, kinds: Iterable[str], seconds: float) -> None:
        with self._lock:
            for kind in kinds:
                self.outages[kind] = max(self.outages.get(kind, 0.0), seconds)


def nowcast(common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of all nowcasts."""
    return {
        "n_steps": 3,
        "seeds_fcn3": [900_001, 900_002],
        "seeds_stormscope": [3, 4],
        "variables": ["abi01c", "abi13c"],
        **common,
    }
