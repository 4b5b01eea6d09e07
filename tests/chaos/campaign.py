"""A campaign: a server under load, what is killed meanwhile, and what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import xarray as xr

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Fault
from tests.chaos.kills import Kills, Watch
from tests.chaos.load import FORECAST, NOWCAST, Load, nowcast
from tests.chaos.verdict import Records, Verdict, judge
from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.azure_places import Azure

GRID = {"n_lat": 19, "n_lon": 36}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
STEP_S = 0.1


@dataclass(frozen=True)
class Campaign:
    """What is set up, and how hard it is hit.

    Parameters
    ----------
    folder : Path
        Becomes the nodes' folders, logs and the journal.
    azurite : Azurite
    postgres_url : str or None
        Database for several nodes; None is SQLite, on one node, with results on its disk that are
        uploaded.
    n_workers : int
    kills : int
    restarts : int
    pause_s : float
        See `Kills.run`.
    in_flight : int
    nowcasts : bool
    seed : int
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

    def upgrade(self) -> tuple[Verdict, Load]:
        """Bring a second cluster up beside the first, send clients there, and end the first.

        Both have one PostgreSQL and one container, and a disk of their own, as when KubeRay
        upgrades a RayService.
        """
        journal = self.folder / "journal"
        with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog, ExitStack() as clusters:
            azure = Azure(self.azurite, catalog, self.folder)
            old, new = (
                Cluster(
                    {**self._args(azure, journal), "data_dir": str(self.folder / name / "var")},
                    self.folder / name,
                    self.n_workers,
                )
                for name in ("old", "new")
            )
            clusters.enter_context(old)
            delivery = {"geo_catalog_url": catalog.url}
            load = Load(old.base_url, self.in_flight, delivery, self.nowcasts, seed=self.seed)
            load.start()
            try:
                _wait_for(lambda: len(load.accepted) >= self.in_flight)
                clusters.enter_context(new)
                load.base_url = new.base_url
                n_accepted = len(load.accepted)
                old.stop()
                _wait_for(lambda: len(load.accepted) >= n_accepted + self.in_flight)
            finally:
                load.stop()
            verdict = _judge(load, azure, new, Records(self._dbos(azure)), journal)
        return verdict, load

    def run(self) -> tuple[Verdict, Kills, Load]:
        """Run it, and judge."""
        journal = self.folder / "journal"
        with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
            azure = Azure(self.azurite, catalog, self.folder)
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
                    records.look,
                    sorted(cluster.deployments()),
                    self.n_workers,
                    self.seed,
                )
                load.start()
                try:
                    kills.run(self.kills, self.pause_s, restarts=self.restarts)
                finally:
                    load.stop()
                verdict = _judge(load, azure, cluster, records, journal, reference)
        return verdict, kills, load

    def endure(
        self,
        faults: Sequence[Fault],
        n: int,
        environment: Mapping[str, str] | None = None,
        *,
        ends_the_conductor: bool = False,
    ) -> tuple[Verdict, dict[str, list[float]], Load]:
        """Let faults come one after the other that kill nobody, and judge.

        Parameters
        ----------
        faults : sequence of callable
        n : int
            How many come.
        environment : mapping of str to str, optional
            Of all processes of the cluster.
        ends_the_conductor : bool
            Whether what runs may be begun anew; what is recorded may not. Otherwise nothing may be
            computed twice.

        Returns
        -------
        Verdict
        dict
            Seconds from the end of a fault until something was computed or ended, by kind.
        Load
        """
        journal = self.folder / "journal"
        chance = random.Random(self.seed)
        to_progress: dict[str, list[float]] = {}
        with GeoCatalogEmulator(creates_at_once=True, polls=0) as catalog:
            azure = Azure(self.azurite, catalog, self.folder)
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
                verdict = _judge(load, azure, cluster, records, journal)
        return verdict, to_progress, load

    def _args(self, azure: Azure, journal: Path) -> dict[str, Any]:
        args = azure.args
        args["models"] = {
            "fcn3": {
                "loader": "tests.chaos.models:load_fcn3",
                "options": {"step_s": STEP_S, "journal": str(journal), **GRID},
                "grid": GRID,
                "replicas": 2,
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

    def _dbos(self, azure: Azure) -> sa.Engine:
        if self.postgres_url is not None:
            return sa.create_engine(self.postgres_url)
        return sa.create_engine(f"sqlite:///{azure.data_dir / 'executions.sqlite.dbos'}")

    def _reference(self, cluster: Cluster, azure: Azure) -> xr.Dataset:
        with httpx.Client(base_url=cluster.base_url, timeout=60) as http:
            url = f"/v1/infer/{NOWCAST}"
            answer = http.post(url, json={"parameters": nowcast({"output_format": "zarr"})})
            answer.raise_for_status()
            execution_id = answer.json()["execution_id"]
            while (status := http.get(f"{url}/{execution_id}/status").json())["end_time"] is None:
                time.sleep(0.2)
        if status["status"] != "completed":
            raise RuntimeError(f"without any kill: {status}")
        return _open(azure, cluster, NOWCAST, execution_id)


def _judge(
    load: Load,
    azure: Azure,
    cluster: Cluster,
    records: Records | None,
    journal: Path,
    reference: xr.Dataset | None = None,
) -> Verdict:
    """Judge while there is somebody to ask where results lie."""
    return judge(
        load,
        lambda workflow, execution_id: _open(azure, cluster, workflow, execution_id),
        grid=GRID,
        records=records,
        journal=journal,
        item_ids=[item["id"] for item in azure.catalog.items.values()],
        reference=reference,
    )


def _wait_for(holds: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.05)


def _open(azure: Azure, cluster: Cluster, workflow: str, execution_id: str) -> xr.Dataset:
    """Open what an execution has delivered, from its blobs; or from the disk if there are none."""
    url = f"{cluster.base_url}/v1/infer/{workflow}/{execution_id}/results"
    found = httpx.get(url, timeout=60).raise_for_status().json()
    if "blob_url" in found:
        return azure.open_dataset(found["blob_url"])
    folder = azure.data_dir / "results" / workflow / execution_id
    return xr.open_zarr(folder / "results.zarr").load()
