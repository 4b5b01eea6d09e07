"""Run a Conductor with stand-in deployments in a process of its own, so that tests can kill it.

``python -m tests.deployments.conductor.conductor_process STORE JOURNAL STEP_S [WORKFLOW]``
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from dbos import DBOS
from dbos._dbos import _get_or_create_dbos_registry

from deployments.conductor.loop import ConductorLoop
from deployments.conductor.options import ConductorOptions
from tests.deployments.conductor.stand_ins import Handle, Journal, StandIns

DEPLOYMENTS = ("packager", "initial_conditions", "fcn3", "blob_uploader", "geocatalog")


def make_loop(store_url: str, stand_ins: StandIns, **settings: Any) -> ConductorLoop:
    """Return a loop for this process; the caller runs and stops it."""
    # A server's process has one Conductor in its life, a test's process has many: DBOS would
    # refuse a second instance of the same name, and warn that the first is still launched.
    registry = _get_or_create_dbos_registry()
    registry.instance_info_map.clear()
    registry.dbos = None
    handle = Handle(stand_ins)
    components = settings.pop("components", {"fcn3": "fcn3", "ifs": "initial_conditions"})
    metrics = settings.pop("metrics", None)
    options = {
        "max_running": {"foundry_fcn3_workflow": 2},
        "drain_s": 0.1,
        "replicas": {"fcn3": 4},
        **settings,
    }
    return ConductorLoop(
        ConductorOptions(store_url=store_url, **options),
        dict.fromkeys(DEPLOYMENTS, handle),  # type: ignore[arg-type]
        components,
        metrics=metrics,
    )


async def _main(store_url: str, journal: Journal, step_s: float) -> None:
    loop = make_loop(store_url, StandIns(journal, step_s))
    journal.note("launched")
    await loop.run()


if __name__ == "__main__":
    if len(sys.argv) > 4:
        # To DBOS this looks like edited code: its hash covers the registered workflows.
        @DBOS.workflow(name=sys.argv[4])
        async def another() -> None:
            """Do nothing."""

    asyncio.run(_main(sys.argv[1], Journal(Path(sys.argv[2])), float(sys.argv[3])))
