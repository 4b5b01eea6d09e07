"""The working records of one execution as blobs.

::

    .work/{execution_id}/admission/plan.json      exists as long as the execution may be written
                                   {fence}        every fence that was seen
                         steps/{member}-{time}    blobs of a time step
                         conditioning/{member}-{step}.npy
                         checkpoints/{member}-{step}.npz

A blob appears complete, but a late writer can recreate one that was removed. Every writer therefore
checks after writing that the plan still exists, and removes what it wrote if not. An execution is
removed plan first, so the removal finds everything that was written before that check.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from deployments.azure.blobs import Blobs
from deployments.results.work import PLAN, Work, encode_plan, not_being_written
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StaleConductor

WORK = ".work"
ADMISSION = "admission"
JSON, BYTES = "application/json", "application/octet-stream"


class BlobWork(Work):
    """Working records as blobs."""

    plan_record = witness = f"{ADMISSION}/{PLAN}"

    def __init__(self, blobs: Blobs, execution_id: str) -> None:
        super().__init__(execution_id)
        self._blobs = blobs
        self.folder = f"{WORK}/{execution_id}"

    def create(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Record the plan and provenance; of several attempts the first one counts."""
        try:
            recorded_plan, recorded_provenance = self.read_plan()
        except FileNotFoundError:
            record = encode_plan(plan, provenance)
            if self._blobs.create(self._key(self.plan_record), record, JSON):
                recorded_plan, recorded_provenance = plan, provenance
            else:
                recorded_plan, recorded_provenance = self.read_plan()
        self.check_fence(fence)
        self._check_same_plan(recorded_plan, plan)
        return recorded_provenance

    def check_fence(self, fence: int) -> None:
        """Check with one listing that no newer fence was seen, and remember this one."""
        names = set(self._names(ADMISSION))
        if PLAN not in names:
            raise not_being_written(self.execution_id)
        newest = max((int(name) for name in names - {PLAN}), default=fence)
        if fence < newest:
            raise StaleConductor(fence, newest)
        if str(fence) not in names:
            self._put(f"{ADMISSION}/{fence}", b"", BYTES)

    def confirm(self, keys: Sequence[str], witness: str | None = None) -> None:
        """Keep blobs that were just written, unless the execution was removed.

        In that case they are removed and StageFailed is raised. They are kept if `witness` exists,
        which shows that the result is complete and only the working records were removed.
        """
        if self._exists(self.plan_record):
            return
        # A purge removes the plan, then the witness, and then lists the blobs. If the witness
        # exists, the purge will still find everything that was written before this check.
        if witness is None or self._blobs.head(witness) is None:
            self._blobs.delete(*keys)
        raise not_being_written(self.execution_id)

    def close(self) -> None:
        """Remove the plan: all writers are refused from now on."""
        self._remove(self.plan_record)

    def filter_written(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of some (member, time index) that are written, with one listing."""
        written = self.written_steps()
        return [step for step in steps if step in written]

    def _open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self._blobs.get(self._key(name)))

    def _exists(self, name: str) -> bool:
        return self._blobs.head(self._key(name)) is not None

    def _names(self, folder: str) -> Iterator[str]:
        return (key.rpartition("/")[2] for key, _ in self._blobs.list(self._key(folder)))

    def _write(self, name: str, content: bytes) -> None:
        self._put(name, content, JSON)

    def _save(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        file = io.BytesIO()
        write(file)
        self._put(name, file.getbuffer(), BYTES)

    def _put(self, name: str, content: bytes | memoryview, media_type: str) -> None:
        self._blobs.put(self._key(name), content, media_type)
        self.confirm([self._key(name)])

    def _remove(self, name: str) -> None:
        self._blobs.delete(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.folder}/{name}"
