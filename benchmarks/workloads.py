"""The jobs that are measured, by workflow: a tiny one and a large one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Workload:
    """A workflow and the parameters of the jobs that are measured.

    ``output_format`` is set by what measures: ``zarr`` or ``netcdf4``.
    """

    workflow: str
    tiny: dict[str, Any]
    """Of the smallest job: what is measured is the serving."""
    large: dict[str, Any]
    """Of a job whose result takes longer to write than to serve."""

    @property
    def path(self) -> str:
        """Where the workflow is submitted; its executions are below."""
        return f"/v1/infer/{self.workflow}"

    def with_steps(self, steps: int) -> Workload:
        """Give the same with another length of the large job, if its parameters have one."""
        if "n_steps" not in self.large:
            return self
        return replace(self, large={**self.large, "n_steps": steps})


STEPS = 40
QUICK_STEPS = 10
CHOSEN = ("t2m", "u10m", "v10m", "z500")
START = datetime(2025, 1, 1)
"""Of FCN3's forecasts."""
SEED = 7
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
    """Give the workload of a workflow; parameters that are given take the place of the table's.

    Raises
    ------
    ValueError
        If the table has none for it, and not both are given.
    """
    known = WORKLOADS.get(workflow)
    if known is not None:
        tiny = known.tiny if tiny is None else tiny
        return replace(known, tiny=tiny, large=known.large if large is None else large)
    if tiny is None or large is None:
        raise ValueError(f"the jobs of {workflow!r} are not known: give --tiny and --large")
    return Workload(workflow, tiny, large)
