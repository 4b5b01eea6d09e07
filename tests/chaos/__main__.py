"""Run long campaigns of faults: ``make chaos``, ``python -m tests.chaos --kills 200``."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.chaos.campaign import Campaign
from tests.chaos.faults import Clock, store_locked, store_stopped
from tests.chaos.kills import report
from tests.chaos.load import Load
from tests.chaos.verdict import Verdict
from tests.emulators.azurite import Azurite, find_azurite
from tests.postgres import PostgresServer


class Setting(NamedTuple):
    """What a campaign uses."""

    folder: Path
    azurite: Azurite
    postgres: PostgresServer
    arguments: argparse.Namespace

    def campaign(
        self, *, on_postgres: bool, n_workers: int = 0, kills: int = 0, pause_s: float = 1.0
    ) -> Campaign:
        return Campaign(
            self.folder,
            self.azurite,
            self.postgres.url if on_postgres else None,
            n_workers=n_workers,
            kills=kills,
            restarts=max(kills // 50, 1),
            pause_s=pause_s,
            seed=self.arguments.seed,
        )


Outcome = tuple[Verdict, str, Load]
PAUSE_S = 5.0
"""Longest pause between two faults, in which some executions start and end."""


def on_nodes(setting: Setting) -> Outcome:
    """Kill on three nodes with their own disks, with PostgreSQL and results in Blob Storage."""
    kills = setting.arguments.kills // 2
    verdict, done, load = setting.campaign(on_postgres=True, n_workers=2, kills=kills).run()
    return verdict, done.report(), load


def on_one_disk(setting: Setting) -> Outcome:
    """Kill on one node, with SQLite and results on its disk, which are uploaded."""
    kills = setting.arguments.kills - setting.arguments.kills // 2
    verdict, done, load = setting.campaign(on_postgres=False, kills=kills).run()
    return verdict, done.report(), load


def with_locked_store(setting: Setting) -> Outcome:
    """Lock the SQLite files for seconds."""
    campaign = setting.campaign(on_postgres=False, pause_s=PAUSE_S)
    database = setting.folder / "var" / "executions.sqlite"
    fault = store_locked(database, database.with_name(f"{database.name}.dbos"))
    return _with_report(campaign.endure([fault], setting.arguments.faults))


def without_store(setting: Setting) -> Outcome:
    """Stop PostgreSQL for seconds; the Conductor loses its lease with its session."""
    fault = store_stopped(setting.postgres)
    campaign = setting.campaign(on_postgres=True, pause_s=PAUSE_S)
    outcome = campaign.endure([fault], setting.arguments.faults, ends_the_conductor=True)
    return _with_report(outcome)


def with_jumping_clock(setting: Setting) -> Outcome:
    """Let the clock of all processes jump forwards and backwards by up to two hours."""
    clock = Clock(setting.folder)
    campaign = setting.campaign(on_postgres=False, pause_s=PAUSE_S)
    return _with_report(campaign.endure([clock.jump], setting.arguments.faults, clock.environment))


def _with_report(outcome: tuple[Verdict, dict[str, list[float]], Load]) -> Outcome:
    verdict, to_progress, load = outcome
    counts = {kind: len(each) for kind, each in to_progress.items()}
    return verdict, report(counts, to_progress), load


CAMPAIGNS: dict[str, Callable[[Setting], Outcome]] = {
    "nodes": on_nodes,
    "disk": on_one_disk,
    "locked": with_locked_store,
    "away": without_store,
    "clock": with_jumping_clock,
}


def main() -> int:
    """Run the campaigns and print their verdicts."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="total number of kills")
    parser.add_argument(
        "--faults", type=int, default=10, help="number of faults of each other kind"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=CAMPAIGNS, nargs="+", default=list(CAMPAIGNS))
    parser.add_argument("--keep", action="store_true", help="keep logs and folders")
    arguments = parser.parse_args()
    executable = find_azurite()
    if executable is None:
        parser.error("Azurite is missing: npm ci --prefix tests/emulators")
    if "clock" in arguments.only and shutil.which("cc") is None:
        parser.error(
            "a C compiler is missing: apt-get install gcc libc6-dev; or --only without clock"
        )
    if set(arguments.only) <= {"nodes"} or set(arguments.only) <= {"disk"}:
        # Each of the two otherwise has half of the kills.
        arguments.kills *= 2
    clean = True
    for name in arguments.only:
        folder = Path(tempfile.mkdtemp(prefix=f"e2s-chaos-{name}-"))
        with contextlib.ExitStack() as stack:
            if not arguments.keep:
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            azurite = stack.enter_context(Azurite(executable))
            postgres = stack.enter_context(PostgresServer())
            verdict, table, load = CAMPAIGNS[name](Setting(folder, azurite, postgres, arguments))
        print(f"\n{name}: {verdict}\n{table}")
        longest = {kind: f"{seconds:.1f} s" for kind, seconds in load.outages.items()}
        print(
            f"failed requests: {dict(load.errors)}, until the answer at most {longest}", flush=True
        )
        clean = clean and verdict.is_clean and not load.refused
        print("\n".join(load.refused))
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
