"""The priority of processes that compute, below those that answer clients."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ray import serve
from ray.serve.exceptions import RayServeException

NICE = 19
"""Ray starts its workers with 15, which has 2.4 times the weight."""


def lower_priority() -> None:
    """Lower the priority of all threads of this process, and of those that they start.

    On a machine whose processors a forecast keeps busy, the ingress otherwise gets so little of
    them that its health checks fail when many clients connect. Outside of Serve, nothing happens.
    """
    try:
        serve.get_replica_context()
    except RayServeException:
        return
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)
