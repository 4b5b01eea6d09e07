"""A campaign: a server under load, the faults that it suffers, and the verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import xarray as xr

from tests.chaos.cluster import REPLICA, Cluster
from tests.chaos.download import Download
from tests.chaos.faults import Fault
from tests.chaos.kills import Kills, Watch
from tests.chaos.load import FORECAST, NOWCAST, Load, nowcast
from tests.chaos.verdict import Records, Verdict, judge, seeds_computed
from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.azure_setup import AzureSetup

GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
STEP_S, SLOW_STEP_S = 0.1, 1.0
FOREVER_S = 1e9
LARGE = {"n_steps": 1, "seeds": [800_001, 800_002], "variables": None}
"""All 72 variables: the system buffers megabytes of a slow client's download."""


@dataclass(frozen=True)
class Upgrade:
    """The outcome of an upgrade."""

    verdict: Verdict
    load: Load
    n_running: int
    """Executions that ran when the first cluster was stopped."""
    n_continued: int
    """Those of them for which the second cluster has computed."""
    download: Download
    """Download of a file that began at the first cluster."""
    sha256: str
    """Checksum of that file in the manifest."""


@dataclass(frozen=True)
class Campaign:
    """What is served, and the faults that it suffers.

    Parameters
    ----------
    folder : Path
        For the nodes' folders, logs and the journal.
    azurite : Azurite
    postgres_url : str or None
        Database of several nodes. With None there is one node, with SQLite and with results on its
        disk, which are uploaded.
    n_workers : int
    kills : int
    restarts : int
    pause_s : float
        See `Kills.run`.
    in_flight : int
    nowcasts : bool
    seed : int
    grid : dict of str to int
        Grid of FCN3.
    """

    folder: Path
    azurite: Azurite
    postgres_url: str | None
    n_workers: int
    kills: int
    restarts: int = 1
    pause_s: float = 1.0
    in_flight: int = 4
    nowcasts: bool = True
    seed: int = 1
    grid: Mapping[str, int] = field(default_factory=lambda: GRID)

    def upgrade(self) -> Upgrade:
        """Start a second cluster beside the first, send clients there, and stop the first.

        As when KubeRay upgrades a RayService, they share PostgreSQL and the container but not the
        disk. The first one's model waits while the second one starts, so that all accepted
        executions are running when the first one is stopped.
        """
        journal, pace = self.folder / "journal", self.folder / "pace"
        with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog, ExitStack() as clusters:
            azure = AzureSetup(self.azurite, catalog, self.folder)
            old, new = (
                Cluster(
                    self._args_of(name, azure, journal, step_s),
                    self.folder / name,
                    self.n_workers,
                )
                for name, step_s in (("old", str(pace)), ("new", STEP_S))
            )
            _set(pace, 0)
            clusters.enter_context(old)
            file = _large_file(old)
            download = Download(file.path)
            delivery = {"geo_catalog_url": catalog.url}
            load = Load(old.base_url, self.in_flight, delivery, self.nowcasts, seed=self.seed)
            _set(pace, FOREVER_S)
            load.start()
            try:
                _wait_for(lambda: len(_running(old)) == self.in_flight)
                clusters.enter_context(new)
                load.base_url = new.base_url
                download.start(old.base_url)
                running = _running(old)
                _set(pace, SLOW_STEP_S)
                old.stop()
                download.resume(new.base_url)
                _wait_for(lambda: len(load.accepted) >= 2 * self.in_flight)
            finally:
                _set(pace, 0)
                load.stop()
            verdict = self._judge(load, azure, new, Records(self._dbos(azure)), journal)
            seeds = seeds_computed(journal, new.pids(f"{REPLICA}FCN3").keys())
        continued = [
            each.execution_id
            for each in load.accepted
            if each.execution_id in running and not seeds.isdisjoint(each.parameters["seeds"])
        ]
        return Upgrade(verdict, load, len(running), len(continued), download, file.sha256)

    def _args_of(
        self, name: str, azure: AzureSetup, journal: Path, step_s: float | str
    ) -> dict[str, Any]:
        """Return the settings of one of two clusters; all accepted executions run at once."""
        args = {**self._args(azure, journal)}
        args["data_dir"] = str(self.folder / name / "var")
        args["models"]["fcn3"]["options"]["step_s"] = step_s
        args["queue"]["max_running"] = self.in_flight
        return args

    def run(self) -> tuple[Verdict, Kills, Load]:
        """Kill processes, and judge the executions."""
        journal = self.folder / "journal"
        with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
            azure = AzureSetup(self.azurite, catalog, self.folder)
            args = self._args(azure, journal)
            delivery = {"geo_catalog_url": catalog.url}
            if self.postgres_url is None:
                delivery["container_url"] = azure.container.url
            with Cluster(args, self.folder, self.n_workers) as cluster:
                records = Records(self._dbos(azure))
                reference = self._reference(cluster, azure) if self.nowcasts else None
                load = Load(
                    cluster.base_url, self.in_flight, delivery, self.nowcasts, seed=self.seed
                )
                kills = Kills(
                    cluster,
                    Watch(journal, lambda: len(load.ended)),
                    records.read,
                    sorted(cluster.deployments()),
                    self.n_workers,
                    self.seed,
                )
                load.start()
                try:
                    kills.run(self.kills, self.pause_s, restarts=self.restarts)
                finally:
                    load.stop()
                verdict = self._judge(load, azure, cluster, records, journal, reference)
        return verdict, kills, load

    def endure(
        self,
        faults: Sequence[Fault],
        n: int,
        environment: Mapping[str, str] | None = None,
        *,
        ends_the_conductor: bool = False,
    ) -> tuple[Verdict, dict[str, list[float]], Load]:
        """Cause faults that kill no process, one after the other, and judge the executions.

        Parameters
        ----------
        faults : sequence of callable
        n : int
            Number of faults.
        environment : mapping of str to str, optional
            Additional variables of all processes of the cluster.
        ends_the_conductor : bool
            Whether members that are not recorded may be computed again. Otherwise nothing may be
            computed twice.

        Returns
        -------
        Verdict
        dict
            Seconds from the end of a fault to the next progress, by kind.
        Load
        """
        journal = self.folder / "journal"
        chance = random.Random(self.seed)
        to_progress: dict[str, list[float]] = {}
        with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
            azure = AzureSetup(self.azurite, catalog, self.folder)
            delivery = {"geo_catalog_url": catalog.url}
            if self.postgres_url is None:
                delivery["container_url"] = azure.container.url
            args = self._args(azure, journal)
            with Cluster(args, self.folder, self.n_workers, environment) as cluster:
                load = Load(
                    cluster.base_url, self.in_flight, delivery, nowcasts=False, seed=self.seed
                )
                watch = Watch(journal, lambda: len(load.ended))
                load.start()
                try:
                    for _ in range(n):
                        _wait_for(lambda: len(load.accepted) > len(load.ended))
                        kind = chance.choice(faults)(chance)
                        to_progress.setdefault(kind, []).append(watch.until_progress(kind))
                        time.sleep(chance.uniform(0, self.pause_s))
                finally:
                    load.stop()
                records = Records(self._dbos(azure)) if ends_the_conductor else None
                verdict = self._judge(load, azure, cluster, records, journal)
        return verdict, to_progress, load

    def _args(self, azure: AzureSetup, journal: Path) -> dict[str, Any]:
        args = azure.args
        args["models"] = {
            "fcn3": {
                "loader": "tests.chaos.models:load_fcn3",
                "options": {"step_s": STEP_S, "journal": str(journal), **self.grid},
                "grid": dict(self.grid),
                "replicas": 2,
                # Members have 3 to 8 steps.
                "checkpoint_steps": 2,
            },
            "stormscope": {"grid": REGION, "num_gpus": 1.0},
        }
        args["ingress"] = {"replicas": 2}
        args["queue"] = {"max_size": 100}
        if not self.nowcasts:
            args["workflows"] = {"exposed": [FORECAST]}
        if self.postgres_url is not None:
            container = azure.container
            args["store_url"] = self.postgres_url
            args["results_url"] = f"az://{container.account}/{container.name}/results"
            args["azure"]["blob"].pop("allowed_containers", None)
        return args

    def _dbos(self, azure: AzureSetup) -> sa.Engine:
        if self.postgres_url is not None:
            return sa.create_engine(self.postgres_url)
        return sa.create_engine(f"sqlite:///{azure.data_dir / 'executions.sqlite.dbos'}")

    def _reference(self, cluster: Cluster, azure: AzureSetup) -> xr.Dataset:
        execution_id = _completed(cluster, NOWCAST, nowcast({"output_format": "zarr"}))
        return _open(azure, cluster, NOWCAST, execution_id)

    def _judge(
        self,
        load: Load,
        azure: AzureSetup,
        cluster: Cluster,
        records: Records | None,
        journal: Path,
        reference: xr.Dataset | None = None,
    ) -> Verdict:
        """Judge while the server still runs: it knows where the results are."""
        return judge(
            load,
            lambda workflow, execution_id: _open(azure, cluster, workflow, execution_id),
            grid=self.grid,
            records=records,
            journal=journal,
            item_ids=[item["id"] for item in azure.catalog.items.values()],
            reference=reference,
        )


def _completed(cluster: Cluster, workflow: str, parameters: Mapping[str, Any]) -> str:
    """Run an execution without faults; return its id."""
    with httpx.Client(base_url=cluster.base_url, timeout=60) as http:
        url = f"/v1/infer/{workflow}"
        response = http.post(url, json={"parameters": parameters}).raise_for_status()
        execution_id: str = response.json()["execution_id"]
        while (status := http.get(f"{url}/{execution_id}/status").json())["end_time"] is None:
            time.sleep(0.2)
    if status["status"] != "completed":
        raise RuntimeError(f"without any fault: {status}")
    return execution_id


@dataclass(frozen=True)
class _File:
    path: str
    sha256: str


def _large_file(cluster: Cluster) -> _File:
    """Run a forecast whose file takes long to download."""
    execution_id = _completed(cluster, FORECAST, {**LARGE, "output_format": "netcdf4"})
    results = f"/v1/infer/{FORECAST}/{execution_id}/results"
    manifest = httpx.get(f"{cluster.base_url}{results}", timeout=60).raise_for_status().json()
    [file] = [each for each in manifest["output_files"] if each["path"].endswith(".nc")]
    return _File(f"{results}/{file['path']}", file["sha256"])


def _running(cluster: Cluster) -> set[str]:
    """Return the running forecasts of both clusters."""
    url = f"{cluster.base_url}/v1/infer/{FORECAST}"
    response = httpx.get(url, params={"status": "running", "limit": 100}, timeout=60)
    return {each["execution_id"] for each in response.raise_for_status().json()["executions"]}


def _set(pace: Path, step_s: float) -> None:
    """Set the duration of a step; replaces the file atomically."""
    new = pace.with_suffix(".new")
    new.write_text(str(step_s))
    new.replace(pace)


def _wait_for(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.05)


def _open(azure: AzureSetup, cluster: Cluster, workflow: str, execution_id: str) -> xr.Dataset:
    """Open the result of an execution from its blobs, or from the disk if it has none."""
    url = f"{cluster.base_url}/v1/infer/{workflow}/{execution_id}/results"
    manifest = httpx.get(url, timeout=60).raise_for_status().json()
    if "blob_url" in manifest:
        return azure.open_dataset(manifest["blob_url"])
    folder = azure.data_dir / "results" / workflow / execution_id
    return xr.open_zarr(folder / "results.zarr").load()
