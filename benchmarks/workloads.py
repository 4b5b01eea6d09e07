"""The measured jobs of each workflow: a tiny one and a large one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Workload:
    """A workflow and the parameters of its jobs.

    The benchmarks add ``output_format``: ``zarr`` or ``netcdf4``.
    """

    workflow: str
    tiny: dict[str, Any]
    """Of the smallest job, to measure serving."""
    large: dict[str, Any]
    """Of a job with a large result, to measure writing."""

    @property
    def path(self) -> str:
        """Path of the workflow; its executions are below."""
        return f"/v1/infer/{self.workflow}"

    def with_steps(self, steps: int) -> Workload:
        """Return a copy with another number of steps of the large job, if it has one."""
        if "n_steps" not in self.large:
            return self
        return replace(self, large={**self.large, "n_steps": steps})


STEPS = 40
QUICK_STEPS = 10
CHOSEN = ("t2m", "u10m", "v10m", "z500")
START, SEED = datetime(2025, 1, 1), 7
"""Of FCN3's forecasts."""

FCN3 = Workload(
    "foundry_fcn3_workflow",
    # Tiny only on a server with a small grid.
    tiny={"n_steps": 1, "n_samples": 1, "variables": ["t2m"]},
    large={
        "start_time": f"{START.isoformat()}Z",
        "n_steps": STEPS,
        "seeds": [SEED],
        "variables": list(CHOSEN),
    },
)
BENCH_PERSISTENCE = Workload(
    "bench_persistence",
    tiny={
        "start_time": ["2024-01-01T00:00:00"],
        "n_steps": 1,
        "grid": "tiny",
        "variables": list(CHOSEN),
    },
    # 41 times x 4 variables x 721 x 1440: 681 MB.
    large={
        "start_time": ["2024-01-01T00:00:00"],
        "n_steps": STEPS,
        "grid": "full",
        "variables": list(CHOSEN),
    },
)
WORKLOADS = {workload.workflow: workload for workload in (BENCH_PERSISTENCE, FCN3)}


def workload_of(
    workflow: str, tiny: dict[str, Any] | None, large: dict[str, Any] | None
) -> Workload:
    """Return the workload of a workflow, with `tiny` and `large` instead of the table's if set.

    Raises
    ------
    ValueError
        If the workflow is not in the table, and not both are set.
    """
    known = WORKLOADS.get(workflow)
    if known is not None:
        tiny = known.tiny if tiny is None else tiny
        return replace(known, tiny=tiny, large=known.large if large is None else large)
    if tiny is None or large is None:
        raise ValueError(f"the jobs of {workflow!r} are unknown: set --tiny and --large")
    return Workload(workflow, tiny, large)
