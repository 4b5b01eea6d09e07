"""The working records of one execution as blobs.

::

    .work/{execution_id}/admission/plan.json      exists as long as the execution may be written
                                   {fence}        every fence that was seen
                         steps/{member}-{time}    blobs of a time step
                         conditioning/{member}-{step}.npy
                         checkpoints/{member}-{step}.npz

A blob appears complete, but a late writer can recreate one that was removed. Every writer therefore
checks after writing that the plan still exists, and removes what it wrote if not. Whoever removes
an execution removes the plan first, and so finds everything that was written before that check.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deployments.azure.blobs import Blobs
from deployments.results.checkpoint import Checkpoint
from deployments.results.protocols import StoredObject, not_being_written
from deployments.results.records import (
    PLAN,
    check_same_plan,
    decode_plan,
    decode_step,
    encode_plan,
    encode_step,
    latest_first,
    parse_numbers,
)
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StaleConductor

WORK = ".work"
JSON, BYTES = "application/json", "application/octet-stream"


class BlobWork:
    """Implements `deployments.results.protocols.Work` with blobs.

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
        self._plan = f"{self._admission}/{PLAN}"
        self._steps = f"{self.folder}/steps"

    # Plan and fences.

    def create(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Record the plan and provenance; of several attempts the first one counts."""
        try:
            recorded_plan, recorded_provenance = self.read_plan()
        except FileNotFoundError:
            if self._blobs.create(self._plan, encode_plan(plan, provenance), JSON):
                recorded_plan, recorded_provenance = plan, provenance
            else:
                recorded_plan, recorded_provenance = self.read_plan()
        self.check_fence(fence)
        check_same_plan(self.execution_id, recorded_plan, plan)
        return recorded_provenance

    def read_plan(self) -> tuple[Plan, Provenance]:
        """Return what was recorded; FileNotFoundError if there is no record."""
        return decode_plan(self._blobs.get(self._plan))

    def check_fence(self, fence: int) -> None:
        """Check with one listing that no newer fence was seen, and remember this one."""
        names = {key.rpartition("/")[2] for key, _ in self._blobs.list(self._admission)}
        if PLAN not in names:
            raise not_being_written(self.execution_id)
        newest = max((int(name) for name in names - {PLAN}), default=fence)
        if fence < newest:
            raise StaleConductor(fence, newest)
        if str(fence) not in names:
            key = f"{self._admission}/{fence}"
            self._blobs.put(key, b"", BYTES)
            self.confirm([key])

    def confirm(self, keys: Sequence[str], witness: str | None = None) -> None:
        """Keep blobs that were just written if the execution still exists; remove them if not.

        Parameters
        ----------
        keys : sequence of str
        witness : str, optional
            A blob whose existence means that the result of these blobs is complete. Then only the
            working records were removed, and the blobs are kept.

        Raises
        ------
        StageFailed
            If the execution was removed.
        """
        if self._blobs.head(self._plan) is not None:
            return
        # A purge removes the witness after the plan, and lists the blobs after that. As long as
        # the witness exists, a purge will find everything that was written before this check.
        if witness is None or self._blobs.head(witness) is None:
            self._blobs.delete(*keys)
        raise not_being_written(self.execution_id)

    def close(self) -> None:
        """Remove the plan: all writers are refused from now on."""
        self._blobs.delete(self._plan)

    # Time steps.

    def record_step(self, member: int, time_index: int, objects: Sequence[StoredObject]) -> None:
        """Record that one time step of one member is written."""
        self._put(self._step(member, time_index), encode_step(objects), JSON)

    def is_written(self, member: int, time_index: int) -> bool:
        """Return whether one time step of one member is written."""
        return self._blobs.head(self._step(member, time_index)) is not None

    def step_objects(self, member: int, time_index: int) -> list[StoredObject]:
        """Return the objects of one time step of one member."""
        return decode_step(self._blobs.get(self._step(member, time_index)))

    def written_steps(self) -> set[tuple[int, int]]:
        """Return all (member, time index) that are written."""
        return self._numbered_blobs(self._steps)

    def filter_written(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of some (member, time index) that are written, with one listing."""
        written = self.written_steps()
        return [step for step in steps if step in written]

    def _step(self, member: int, time_index: int) -> str:
        return f"{self._steps}/{member}-{time_index}"

    # Fields of one model that condition another.

    def write_conditioning(self, member: int, step: int, field: NDArray[np.float32]) -> None:
        """Keep a field that conditions a time step, until the execution ends."""
        file = io.BytesIO()
        np.save(file, field)
        self._put(self._conditioning_field(member, step), file.getbuffer())

    def read_conditioning(self, member: int, step: int) -> NDArray[np.float32] | None:
        """Return such a field; None if it is not written yet."""
        try:
            content = self._blobs.get(self._conditioning_field(member, step))
        except FileNotFoundError:
            if self._blobs.head(self._plan) is None:
                raise not_being_written(self.execution_id) from None
            return None
        field: NDArray[np.float32] = np.load(io.BytesIO(content))
        return field

    def conditioning_steps(self) -> set[tuple[int, int]]:
        """Return all (member, step) whose conditioning field is written."""
        return self._numbered_blobs(f"{self.folder}/conditioning")

    def _conditioning_field(self, member: int, step: int) -> str:
        return f"{self.folder}/conditioning/{member}-{step}.npy"

    # Checkpoints.

    def checkpoint_steps(self, member: int) -> list[int]:
        """Return the time steps at which a member has a checkpoint, latest first."""
        return latest_first(self._numbered_blobs(f"{self.folder}/checkpoints"), member)

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is removed or the execution ends."""
        file = io.BytesIO()
        checkpoint.write(file)
        self._put(self._checkpoint(member, checkpoint.step), file.getbuffer())

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Return a checkpoint; ValueError if it is damaged."""
        content = self._blobs.get(self._checkpoint(member, step))
        return Checkpoint.read(step, io.BytesIO(content))

    def remove_checkpoint(self, member: int, step: int) -> None:
        """Remove a checkpoint, if it exists."""
        self._blobs.delete(self._checkpoint(member, step))

    def _checkpoint(self, member: int, step: int) -> str:
        return f"{self.folder}/checkpoints/{member}-{step}.npz"

    def _put(self, key: str, content: bytes | memoryview, media_type: str = BYTES) -> None:
        self._blobs.put(key, content, media_type)
        self.confirm([key])

    def _numbered_blobs(self, folder: str) -> set[tuple[int, int]]:
        """Return the numbers of all blobs ``{member}-{number}``."""
        return parse_numbers(key.rpartition("/")[2] for key, _ in self._blobs.list(folder))
