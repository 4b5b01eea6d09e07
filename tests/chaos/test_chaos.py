"""The short form of ``make chaos``: a few kills on several nodes, each with its own disk."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import xarray as xr

from tests.chaos.campaign import GRID, Campaign
from tests.chaos.load import FORECAST, START, Accepted, Load
from tests.chaos.verdict import MEMBER_STEP, Records, Verdict, expected, judge
from tests.emulators.azurite import Azurite
from workflows.grids import Grid


@pytest.fixture
def folder() -> Iterator[Path]:
    # Its path must be short, for sockets of Ray.
    with tempfile.TemporaryDirectory(prefix="e2s-chaos-") as name:
        yield Path(name)


@pytest.fixture
def n_workers() -> int:
    """Number of nodes with their own mounts; none if mounts are not permitted."""
    may_mount = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount --bind /tmp /tmp"], capture_output=True
    )
    return 0 if may_mount.returncode else 2


@pytest.mark.ray
@pytest.mark.slow
def test_kills_leave_nothing_lost_doubled_or_wrong(
    folder: Path, azurite: Azurite, postgres_database: str, n_workers: int
) -> None:
    campaign = Campaign(
        folder,
        azurite,
        postgres_database,
        n_workers,
        kills=5,
        restarts=0,
        in_flight=3,
        nowcasts=False,
    )
    verdict, kills, load = campaign.run()
    assert verdict.accepted >= 3
    assert verdict.is_clean and not load.refused, f"{verdict}\n{kills.report()}"


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_cluster_continues_the_executions_of_the_first(
    folder: Path, azurite: Azurite, postgres_database: str
) -> None:
    """As in an upgrade by KubeRay: both run for a while, and clients are sent to the new one.

    When the first one is stopped, twenty executions run, and a file is downloaded from it.
    """
    campaign = Campaign(
        folder,
        azurite,
        postgres_database,
        n_workers=0,
        kills=0,
        in_flight=20,
        nowcasts=False,
        grid={"n_lat": 91, "n_lon": 180},
    )
    upgrade = campaign.upgrade()
    assert upgrade.n_running == 20
    assert upgrade.n_continued > 0
    assert upgrade.verdict.accepted >= 40
    assert upgrade.verdict.is_clean and not upgrade.load.refused, str(upgrade.verdict)
    download = upgrade.download
    assert download.lost_at is not None and 0 < download.lost_at < download.size
    start, size = download.lost_at, download.size
    assert download.resumed == f"206 bytes {start}-{size - 1}/{size}"
    assert (len(download.content), download.sha256) == (size, upgrade.sha256)


SEEDS = [7, 8]
RECORDED_AT = 1000.0


class Outcome:
    """One execution that completed correctly, as `judge` sees it."""

    def __init__(self, folder: Path) -> None:
        parameters = {
            "start_time": START,
            "n_steps": 2,
            "seeds": SEEDS,
            "variables": ["t2m", "z500"],
            "geo_catalog_url": "https://earth.example",
        }
        self.accepted = Accepted(FORECAST, "exec_1", parameters)
        self.load = Load("http://127.0.0.1:1", 1, {}, nowcasts=False, seed=1)
        self.load.accepted.append(self.accepted)
        self.load.ended["exec_1"] = {"status": "completed"}
        self.values = {
            name: (("ensemble", "time", "lat", "lon"), values)
            for name, values in expected(self.accepted, Grid(**GRID)).items()
        }
        self.journal = folder / "journal"
        self.computed_at = {seed: RECORDED_AT - 1 for seed in SEEDS}
        self.items = ["item-exec_1"]
        self.dbos = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        with self.dbos.begin() as connection:
            connection.execute(
                sa.text(
                    "CREATE TABLE operation_outputs (workflow_uuid TEXT, function_id INTEGER, "
                    "function_name TEXT, error TEXT, completed_at_epoch_ms INTEGER)"
                )
            )
            for number in range(len(SEEDS)):
                connection.execute(
                    sa.text(
                        "INSERT INTO operation_outputs VALUES ('exec_1', :number, :step, NULL, :at)"
                    ),
                    {"number": number, "step": MEMBER_STEP, "at": int(RECORDED_AT * 1000)},
                )

    def judged(self) -> Verdict:
        lines = [f"{seed} 1 0 {at}\n" for seed, at in self.computed_at.items()]
        self.journal.write_text("".join(lines))
        return judge(
            self.load,
            lambda *_: xr.Dataset(self.values),
            grid=GRID,
            records=Records(self.dbos),
            journal=self.journal,
            item_ids=self.items,
            reference=None,
        )


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    return Outcome(tmp_path)


def test_a_correct_execution_is_right(outcome: Outcome) -> None:
    assert outcome.judged().is_clean


def test_a_failed_execution_is_lost(outcome: Outcome) -> None:
    outcome.load.ended["exec_1"] = {"status": "failed", "stage": "upload", "error_message": "why"}
    verdict = outcome.judged()
    assert verdict.lost == [f"lost: exec_1 ({FORECAST}) is failed at upload: why"]
    assert not verdict.is_clean


def test_an_execution_with_a_wrong_value_is_wrong(outcome: Outcome) -> None:
    outcome.values["t2m"][1][1, 2, 3, 4] += 1e-4
    verdict = outcome.judged()
    assert verdict.wrong == [f"wrong: exec_1 ({FORECAST}): t2m"] and not verdict.is_clean


def test_an_execution_with_a_repeated_member_is_doubled(outcome: Outcome) -> None:
    outcome.computed_at[SEEDS[1]] = RECORDED_AT + 1
    (doubled,) = outcome.judged().doubled
    assert "seed 8 was computed 1.00 s after it was recorded" in doubled


@pytest.mark.parametrize("items", [[], ["a-exec_1", "b-exec_1"]])
def test_an_execution_with_no_or_two_items_is_doubled(outcome: Outcome, items: list[str]) -> None:
    outcome.items = items
    (doubled,) = outcome.judged().doubled
    assert f"it has {len(items)} items" in doubled
