"""The working records of one execution as blobs.

::

    .work/{execution_id}/admission/plan.json      there as long as the execution may be written
                                   3              a fence that was seen
                         steps/{member}-{time}    which blobs hold a step
                         conditioning/{member}-{step}.npy
                         checkpoints/{member}-{step}.npz

A blob appears whole, but one that was removed comes back when it is written again. So whoever has
written looks whether the plan is still there, and removes what he wrote if it is not. Whoever
removes an execution removes the plan first: he finds whatever was written before that look.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.azure.blobs import Blobs
from deployments.results.checkpoint import Checkpoint
from deployments.results.disk_work import Written
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StageFailed, StaleConductor
from workflows.execution import Stage

WORK = ".work"
JSON, BYTES = "application/json", "application/octet-stream"
_PLAN = "plan.json"


class BlobWork:
    """Working records of an execution, as `deployments.results.protocols.Work` describes them.

    Parameters
    ----------
    blobs : Blobs
    execution_id : str
    """

    def __init__(self, blobs: Blobs, execution_id: str) -> None:
        self._blobs = blobs
        self.execution_id = execution_id
        self.folder = f"{WORK}/{execution_id}"
        self._admission = f"{self.folder}/admission"
        self._plan = f"{self._admission}/{_PLAN}"
        self._steps = f"{self.folder}/steps"

    # The plan.

    def begin(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Note what shall be written; of several attempts the first one counts."""
        try:
            known, first = self.plan()
        except FileNotFoundError:
            noted = {
                "plan": plan.model_dump(mode="json"),
                "provenance": provenance.model_dump(mode="json"),
            }
            if self._blobs.create(self._plan, json.dumps(noted).encode(), JSON):
                known, first = plan, provenance
            else:
                known, first = self.plan()
        self.admit(fence)
        if known != plan:
            raise StageFailed(
                Stage.PACKAGE, f"{self.execution_id} was begun with another plan than this"
            )
        return first

    def plan(self) -> tuple[Plan, Provenance]:
        """Read what shall be written; FileNotFoundError if nothing was begun, or all is gone."""
        noted = json.loads(self._blobs.get(self._plan))
        return Plan.model_validate(noted["plan"]), Provenance.model_validate(noted["provenance"])

    def admit(self, fence: int) -> None:
        """Let the newest fence pass, and remember it; one listing tells of all."""
        names = {key.rpartition("/")[2] for key, _ in self._blobs.list(self._admission)}
        if _PLAN not in names:
            raise self.gone()
        newest = max((int(name) for name in names - {_PLAN}), default=fence)
        if fence < newest:
            raise StaleConductor(fence, newest)
        if str(fence) not in names:
            key = f"{self._admission}/{fence}"
            self._blobs.put(key, b"", BYTES)
            self.keep([key])

    def gone(self) -> StageFailed:
        """Give the error for an execution that was never begun, or has been removed."""
        return StageFailed(Stage.PACKAGE, f"{self.execution_id} is not being written")

    def keep(self, keys: Sequence[str], witness: str | None = None) -> None:
        """Let blobs stay that were just written, unless the execution has gone meanwhile.

        Parameters
        ----------
        keys : sequence of str
            Of the blobs; they are removed if it has.
        witness : str, optional
            A blob that tells that the result they belong to is whole. Then only the working
            records are gone, and it shall stay whole.

        Raises
        ------
        StageFailed
            If the execution has gone.
        """
        if self._blobs.head(self._plan) is not None:
            return
        # Purging removes the witness after the plan and then lists what there is: as long as the
        # witness is there, it will find whatever was written before this look.
        if witness is None or self._blobs.head(witness) is None:
            self._blobs.delete(*keys)
        raise self.gone()

    def close(self) -> None:
        """See to it that no writer is admitted any more."""
        self._blobs.delete(self._plan)

    # Steps.

    def record_step(self, member: int, time_index: int, objects: Sequence[Written]) -> None:
        """Note that one time of one member is written."""
        key = self._step(member, time_index)
        rows = [[each.key, each.size, each.sha256] for each in objects]
        self._blobs.put(key, json.dumps(rows).encode(), JSON)
        self.keep([key])

    def is_written(self, member: int, time_index: int) -> bool:
        """Say whether one time of one member is written."""
        return self._blobs.head(self._step(member, time_index)) is not None

    def objects(self, step: tuple[int, int]) -> list[Written]:
        """Read which objects hold one (member, time index)."""
        return [Written(*row) for row in json.loads(self._blobs.get(self._step(*step)))]

    def written(self) -> set[tuple[int, int]]:
        """Read which (member, time index) are written."""
        return self._numbered(self._steps)

    def written_of(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read which of some (member, time index) are written: one listing tells of all."""
        written = self.written()
        return [step for step in steps if step in written]

    def _step(self, member: int, time_index: int) -> str:
        return f"{self._steps}/{member}-{time_index}"

    # What conditions the execution's forecast.

    def write_conditioning(self, member: int, step: int, field: NDArray[np.float32]) -> None:
        """Keep a field until the execution has ended."""
        file = io.BytesIO()
        np.save(file, field)
        key = self._conditioning(member, step)
        self._blobs.put(key, file.getvalue(), BYTES)
        self.keep([key])

    def read_conditioning(self, member: int, step: int) -> NDArray[np.float32] | None:
        """Read a field; None if it is not there yet."""
        try:
            content = self._blobs.get(self._conditioning(member, step))
        except FileNotFoundError:
            if self._blobs.head(self._plan) is None:
                raise self.gone() from None
            return None
        field: NDArray[np.float32] = np.load(io.BytesIO(content))
        return field

    def conditioned(self) -> set[tuple[int, int]]:
        """Read which (member, step) have such a field."""
        return self._numbered(f"{self.folder}/conditioning")

    # Checkpoints: models in the middle of a member.

    def checkpoints(self, member: int) -> list[int]:
        """Read at which steps there is a checkpoint of a member, the last one first."""
        found = self._numbered(f"{self.folder}/checkpoints")
        return sorted((step for owner, step in found if owner == member), reverse=True)

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is dropped or the execution has ended."""
        file = io.BytesIO()
        checkpoint.write(file)
        key = self._checkpoint(member, checkpoint.step)
        self._blobs.put(key, file.getbuffer(), BYTES)
        self.keep([key])

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Read a checkpoint; FileNotFoundError if it is not there, ValueError if it is damaged."""
        content = self._blobs.get(self._checkpoint(member, step))
        return Checkpoint.read(step, io.BytesIO(content))

    def drop_checkpoint(self, member: int, step: int) -> None:
        """Remove a checkpoint, if it is there."""
        self._blobs.delete(self._checkpoint(member, step))

    def _checkpoint(self, member: int, step: int) -> str:
        return f"{self.folder}/checkpoints/{member}-{step}.npz"

    def _numbered(self, folder: str) -> set[tuple[int, int]]:
        """Read which blobs ``{member}-{number}`` there are."""
        names = (key.rpartition("/")[2] for key, _ in self._blobs.list(folder))
        pairs = (name.partition(".")[0].split("-") for name in names)
        return {(int(member), int(number)) for member, number in pairs}

    def _conditioning(self, member: int, step: int) -> str:
        return f"{self.folder}/conditioning/{member}-{step}.npy"
