"""Data that models exchange or resume from while an execution runs: never delivered."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Checkpoint
from deployments.results.names import check_name
from deployments.results.protocols import Storage
from deployments.results.work import Work

logger = logging.getLogger("ray.serve")


class IntermediateStore:
    """Keeps conditioning fields and checkpoints, which are removed with the working files.

    As in `deployments.results.store.ResultsStore`, methods may be called concurrently and repeated,
    and those that take a fence raise StaleConductor or StageFailed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write_conditioning(
        self, execution_id: str, fence: int, member: int, step: int, field: NDArray[np.float32]
    ) -> None:
        """Keep a field, shape (lat, lon), that conditions a time step of another model."""
        work = self._work(execution_id)
        work.check_fence(fence)
        work.write_conditioning(member, step, field)

    def read_conditioning(
        self, execution_id: str, member: int, step: int
    ) -> NDArray[np.float32] | None:
        """Return such a field; None if it is not written yet."""
        return self._work(execution_id).read_conditioning(member, step)

    def write_checkpoint(
        self, execution_id: str, fence: int, member: int, checkpoint: Checkpoint
    ) -> None:
        """Keep a checkpoint of a member in place of earlier ones."""
        work = self._work(execution_id)
        work.check_fence(fence)
        work.write_checkpoint(member, checkpoint)
        for step in work.checkpoint_steps(member):
            if step < checkpoint.step:
                work.remove_checkpoint(member, step)

    def read_checkpoint(self, execution_id: str, member: int) -> Checkpoint | None:
        """Return the latest checkpoint of a member up to which all its steps are written, if any.

        A damaged one is skipped: the member restarts further back.
        """
        work = self._work(execution_id)
        steps = work.checkpoint_steps(member)
        written = work.written_steps() if steps else set()
        for step in steps:
            if not written.issuperset((member, earlier) for earlier in range(step + 1)):
                continue
            try:
                return work.read_checkpoint(member, step)
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                logger.exception("a checkpoint of member %d cannot be used", member)
        return None

    def remove_checkpoints(self, execution_id: str, fence: int, member: int) -> None:
        """Remove all checkpoints of a member."""
        work = self._work(execution_id)
        work.check_fence(fence)
        for step in work.checkpoint_steps(member):
            work.remove_checkpoint(member, step)

    def _work(self, execution_id: str) -> Work:
        return self._storage.work(check_name(execution_id))
