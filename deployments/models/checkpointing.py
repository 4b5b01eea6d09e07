"""Keeping the state of a model while it computes a member, and going on where another stopped.

The model is held up by a copy to the host's memory, and its next step's hand-over while the event
loop copies that into Ray's object store; all else happens beside the next steps.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from deployments.models.buffer_pool import BufferPool
from deployments.models.messages import MemberJob
from deployments.models.state import internal_state
from deployments.models.write_window import ATTEMPTS, FIRST_PAUSE_S, WriteWindow
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import retry_transient

logger = logging.getLogger("ray.serve")


class Checkpoints:
    """Those of one member, as the Packager keeps them.

    Parameters
    ----------
    packager : DeploymentHandle
    job : MemberJob
    every : int or None
        Steps from one to the next; None for none.
    origin : str
        Which model computes which member; those of another are of no use.
    memory : HostMemory
        For states on their way.
    pause_s : float
        What it waits for first before it asks again for the last one.
    """

    def __init__(
        self,
        packager: Any,
        job: MemberJob,
        every: int | None,
        origin: str,
        memory: BufferPool,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._packager = packager
        self._job = job
        # One at the end would come too late.
        self._every = None if every is None or every >= job.plan.n_steps else every
        self._origin = origin
        self._memory = memory
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()
        self._any = False

    async def find(self) -> Checkpoint | None:
        """Get the last one; None if the member has to begin."""
        if self._every is None:
            return None
        job = self._job
        try:
            found: Checkpoint | None = await retry_transient(
                lambda: self._packager.read_checkpoint.remote(job.execution_id, job.member),
                "reading the checkpoint",
                attempts=ATTEMPTS,
                pause_s=self._pause_s,
            )
        except Exception:
            # It costs time, but no execution.
            logger.warning("member %d begins anew: no checkpoint read", job.member, exc_info=True)
            self._any = True
            return None
        if found is None:
            return None
        self._any = True
        if found.origin != self._origin:
            logger.warning("member %d begins anew: its checkpoint is of another model", job.member)
            return None
        logger.info("member %d goes on behind step %d", job.member, found.step)
        return found

    def keep(self, model: Any, step: int, fields: Any, window: WriteWindow) -> None:
        """Keep the state behind a step, if that is one to be kept; in the model's thread.

        Parameters
        ----------
        fields : array or tensor, shape (variable, lat, lon)
            All that the model gave at that step, and nothing since.
        window : StepWindow
            Writes the steps, this one included: the checkpoint is written behind them.
        """
        if self._every is None or step == 0 or step % self._every:
            return
        if window.is_busy_behind:
            # The disk is slower than the model. The one before will do.
            logger.warning("no checkpoint at step %d: the one before is not written yet", step)
            return
        try:
            internal = internal_state(model)
            if internal is None:
                return
            state = self._memory.fields(fields, range(len(fields)))
        except Exception:
            # Of a model that is not quite as it looks, or for want of memory.
            logger.warning(
                "no checkpoint at step %d: its state is not to be had", step, exc_info=True
            )
            return
        checkpoint = Checkpoint(step, self._origin, state, internal)
        put = window.put_behind(lambda: self._write(checkpoint))
        asyncio.run_coroutine_threadsafe(put, self._loop)

    async def _write(self, checkpoint: Checkpoint) -> None:
        job = self._job
        try:
            await self._packager.write_checkpoint.remote(
                job.execution_id, job.fence, job.member, checkpoint
            )
            self._any = True
        except Exception:
            # Nobody needs it unless this process dies. If the disk is full, or another Conductor
            # has taken over, the next step says so.
            logger.warning("no checkpoint at step %d", checkpoint.step, exc_info=True)
        self._memory.give_back(checkpoint.state)

    async def drop(self) -> None:
        """Remove them: the member is whole."""
        if not self._any:
            return
        job = self._job
        try:
            await self._packager.drop_checkpoints.remote(job.execution_id, job.fence, job.member)
        except Exception:
            # They go with the working files.
            logger.warning("checkpoints of member %d stay for now", job.member, exc_info=True)
