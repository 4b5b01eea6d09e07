"""Save the state of a model while it computes a member, and find it again after an interruption.

The model waits while its state is copied to the host's memory, and the hand-over of its next step
waits while the event loop copies that into Ray's object store. The rest overlaps with later steps.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np

from deployments.models.buffer_pool import BufferPool, Floats
from deployments.models.messages import MemberJob
from deployments.models.random_numbers import RandomNumbers
from deployments.models.state import internal_state
from deployments.models.write_window import PACKAGER_CALL, WriteWindow
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import retry_transient

logger = logging.getLogger("ray.serve")


class Checkpoints:
    """The checkpoints of one member, kept by the Packager; their failures never fail the member.

    Parameters
    ----------
    every : int or None
        Time steps from one checkpoint to the next; None for no checkpoints.
    origin : str
        Identifies the model and the member; checkpoints of another origin are not used.
    buffers : BufferPool
        Memory for states that are being written.
    """

    def __init__(
        self, packager: Any, job: MemberJob, every: int | None, origin: str, buffers: BufferPool
    ) -> None:
        self._packager = packager
        self._job = job
        # A checkpoint at the last step would be useless.
        self._every = None if every is None or every >= job.plan.n_steps else every
        self._origin = origin
        self._buffers = buffers
        self._loop = asyncio.get_running_loop()
        self._may_exist = False
        self._history = len(job.plan.history_hours)
        self._latest: list[Floats] = []

    async def find(self) -> Checkpoint | None:
        """Return the latest checkpoint; None if the member must start from the beginning."""
        if self._every is None:
            return None
        job = self._job
        try:
            checkpoint: Checkpoint | None = await retry_transient(
                lambda: self._packager.read_checkpoint.remote(job.execution_id, job.member),
                "reading the checkpoint",
                PACKAGER_CALL,
            )
        except Exception:
            logger.warning(
                "member %d restarts: its checkpoint could not be read", job.member, exc_info=True
            )
            self._may_exist = True
            return None
        if checkpoint is None:
            return None
        self._may_exist = True
        if checkpoint.origin != self._origin:
            logger.warning("member %d restarts: its checkpoint has another origin", job.member)
            return None
        logger.info("member %d resumes after step %d", job.member, checkpoint.step)
        return checkpoint

    def save(
        self, model: Any, step: int, fields: Any, numbers: RandomNumbers, window: WriteWindow
    ) -> None:
        """Save the state after a step if a checkpoint is due; called in the model's thread.

        Parameters
        ----------
        fields : array or tensor, shape (variable, *space)
            The model's whole output at that step, its latest.
        numbers : RandomNumbers
            Those of the member.
        window : WriteWindow
            Writes the steps. The checkpoint is written after them, this one included.
        """
        if self._every is None or step == 0:
            return
        ahead = -step % self._every
        if ahead >= self._history:
            return
        try:
            if self._history > 1:
                self._keep(fields)
        except Exception:
            logger.warning("no checkpoint: the state could not be kept", exc_info=True)
            self._latest = []
        if ahead:
            return
        if window.has_deferred:
            # Writing is slower than the model; the previous checkpoint must suffice.
            logger.warning("no checkpoint at step %d: the previous one is still pending", step)
            return
        try:
            internal = internal_state(model, numbers)
            if internal is None:
                return
            if self._history == 1:
                state = self._buffers.copy(fields, range(len(fields)))
            elif len(self._latest) == self._history:
                state = np.stack(self._latest)
            else:
                return  # too few steps since the beginning
        except Exception:
            # Another version of makani, or no memory left.
            logger.warning(
                "no checkpoint at step %d: the state could not be read", step, exc_info=True
            )
            return
        checkpoint = Checkpoint(step, self._origin, state, internal)
        deferred = window.defer(lambda: self._write(checkpoint))
        asyncio.run_coroutine_threadsafe(deferred, self._loop)

    def _keep(self, fields: Any) -> None:
        kept = BufferPool().copy(fields, range(len(fields)))
        self._latest = [*self._latest, kept][-self._history :]

    async def _write(self, checkpoint: Checkpoint) -> None:
        job = self._job
        try:
            await self._packager.write_checkpoint.remote(
                job.execution_id, job.fence, job.member, checkpoint
            )
            self._may_exist = True
        except Exception:
            # Only a restart would need it. A full disk or a newer Conductor fails the next step.
            logger.warning("no checkpoint at step %d", checkpoint.step, exc_info=True)
        self._buffers.release(checkpoint.state)

    async def remove(self) -> None:
        """Remove the checkpoints: the member is complete, or cannot use them."""
        if not self._may_exist:
            return
        job = self._job
        try:
            await self._packager.remove_checkpoints.remote(job.execution_id, job.fence, job.member)
        except Exception:
            # They are removed with the execution's working files.
            logger.warning(
                "checkpoints of member %d could not be removed yet", job.member, exc_info=True
            )
