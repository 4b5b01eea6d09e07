"""The working files of one execution: its plan, its fences and what has been written.

Every fact is a file that appears whole or not at all, so that any number of processes can add to
them, and any of them may be killed at any line.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Checkpoint
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import ExecutionCancelled, StageFailed, StaleConductor
from workflows.execution import Stage

LOCK_POLL_S = 0.05


@dataclass(frozen=True)
class Written:
    """An object that was written whole."""

    key: str
    """Path below the result's root."""
    size: int
    sha256: str | None
    """None where the object is not delivered."""


class DiskWork:
    """Working files of an execution.

    Parameters
    ----------
    path : Path
        Its folder; others may keep further files there.
    execution_id : str
        For messages.
    """

    def __init__(self, path: Path, execution_id: str) -> None:
        self.path = path
        self.execution_id = execution_id
        self._fences = path / "fences"
        self._steps = path / "steps"
        self._conditioning = path / "conditioning"
        self._checkpoints = path / "checkpoints"

    def open(self, fence: int) -> None:
        """Make the folder, unless it is there, and let the newest fence pass.

        Raises
        ------
        StaleConductor
            If a newer fence was seen.
        """
        self._fences.mkdir(parents=True, exist_ok=True)
        self.admit(fence)

    # The plan.

    def begin(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Note what shall be written; of several attempts the first one counts.

        Returns
        -------
        Provenance
            That of the first attempt.

        Raises
        ------
        StageFailed
            If the execution was begun with another plan.
        """
        self.open(fence)
        self._steps.mkdir(exist_ok=True)
        self._conditioning.mkdir(exist_ok=True)
        try:
            known, first = self.plan()
        except FileNotFoundError:
            self._put(
                self.path / "plan.json",
                {
                    "plan": plan.model_dump(mode="json"),
                    "provenance": provenance.model_dump(mode="json"),
                },
            )
            return provenance
        if known != plan:
            raise StageFailed(
                Stage.PACKAGE, f"{self.execution_id} was begun with another plan than this"
            )
        return first

    def plan(self) -> tuple[Plan, Provenance]:
        """Read what shall be written.

        Raises
        ------
        FileNotFoundError
            If nothing was begun, or all is gone.
        """
        noted = json.loads((self.path / "plan.json").read_bytes())
        return Plan.model_validate(noted["plan"]), Provenance.model_validate(noted["provenance"])

    def admit(self, fence: int) -> None:
        """Let the newest fence pass, and remember it.

        Each fence seen is a file of its own: the newest can only rise, without any lock.

        Raises
        ------
        StaleConductor
            If a newer fence was seen.
        StageFailed
            If the execution is not being written.
        """
        try:
            seen = {int(name) for name in os.listdir(self._fences)}
            if fence not in seen:
                (self._fences / str(fence)).touch()
        except FileNotFoundError:
            raise self.gone() from None
        newest = max(seen, default=fence)
        if fence < newest:
            raise StaleConductor(fence, newest)

    def gone(self) -> StageFailed:
        """Give the error for an execution that was never begun, or has been removed.

        Not StaleConductor, which ends the process that gets it: nobody need have taken over when a
        folder is gone, and every other execution would end with that process.
        """
        return StageFailed(Stage.PACKAGE, f"{self.execution_id} is not being written")

    # Steps.

    def record_step(self, member: int, time_index: int, objects: Sequence[Written]) -> None:
        """Note that one time of one member is written."""
        self._put(self._step(member, time_index), [[o.key, o.size, o.sha256] for o in objects])

    def is_written(self, member: int, time_index: int) -> bool:
        """Say whether one time of one member is written."""
        return self._step(member, time_index).exists()

    def written_of(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read which of some (member, time index) are written."""
        return [step for step in steps if self.is_written(*step)]

    def objects(self, member: int, time_index: int) -> list[Written]:
        """Read which objects hold one time of one member."""
        return [Written(*row) for row in json.loads(self._step(member, time_index).read_bytes())]

    def written(self) -> set[tuple[int, int]]:
        """Read which (member, time index) are written."""
        return _numbered(self._steps)

    def _step(self, member: int, time_index: int) -> Path:
        return self._steps / f"{member}-{time_index}"

    # What conditions the execution's forecast: fields on their way from one model to another.

    def write_conditioning(self, member: int, step: int, field: NDArray[np.float32]) -> None:
        """Keep a field until the execution has ended; it survives a power cut.

        That a member's fields are there is recorded, and nobody would compute a lost one again.
        """
        self._put_durably(self._conditioning_field(member, step), lambda file: np.save(file, field))

    def read_conditioning(self, member: int, step: int) -> NDArray[np.float32] | None:
        """Read a field; None if it is not there yet.

        Raises
        ------
        StageFailed
            If the execution is not being written.
        """
        try:
            field: NDArray[np.float32] = np.load(self._conditioning_field(member, step))
        except FileNotFoundError:
            if not self._conditioning.exists():
                raise self.gone() from None
            return None
        return field

    def conditioned(self) -> set[tuple[int, int]]:
        """Read which (member, step) have such a field."""
        return _numbered(self._conditioning)

    def _conditioning_field(self, member: int, step: int) -> Path:
        return self._conditioning / f"{member}-{step}.npy"

    # Checkpoints: models in the middle of a member.

    def checkpoints(self, member: int) -> list[int]:
        """Read at which steps there is a checkpoint of a member, the last one first."""
        found = _numbered(self._checkpoints)
        return sorted((step for owner, step in found if owner == member), reverse=True)

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is dropped or the execution has ended."""
        try:
            self._checkpoints.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise self.gone() from None
        self._put_durably(self._checkpoint(member, checkpoint.step), checkpoint.write)

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Read a checkpoint; FileNotFoundError if it is not there, ValueError if it is damaged."""
        with self._checkpoint(member, step).open("rb") as file:
            return Checkpoint.read(step, file)

    def drop_checkpoint(self, member: int, step: int) -> None:
        """Remove a checkpoint, if it is there."""
        self._checkpoint(member, step).unlink(missing_ok=True)

    def _checkpoint(self, member: int, step: int) -> Path:
        return self._checkpoints / f"{member}-{step}.npz"

    # The export.

    def record_export(self, exported: Written) -> None:
        """Note that the exported file is whole."""
        self._put(self.path / "export.json", [exported.key, exported.size, exported.sha256])

    def export(self) -> Written | None:
        """Read what was exported; None if that is not whole."""
        try:
            return Written(*json.loads((self.path / "export.json").read_bytes()))
        except FileNotFoundError:
            return None

    @contextmanager
    def exporting(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Be the only one who exports; the lock goes with the process that holds it.

        Raises
        ------
        ExecutionCancelled
            If told to stop while another exports.
        """
        try:
            lock = os.open(self.path / "export.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            raise self.gone() from None
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if should_stop():
                        raise ExecutionCancelled(self.execution_id) from None
                    time.sleep(LOCK_POLL_S)
            yield
        finally:
            os.close(lock)

    def _put_durably(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file that survives a power cut."""
        partial = path.with_name(f".{secrets.token_hex(8)}")
        try:
            try:
                with partial.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except OSError:
                # Of a full disk it would take what others need.
                partial.unlink(missing_ok=True)
                raise
            folder = os.open(path.parent, os.O_RDONLY)
        except FileNotFoundError:
            raise self.gone() from None
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _put(self, path: Path, document: Any) -> None:
        partial = path.with_name(f".{secrets.token_hex(8)}")
        try:
            partial.write_bytes(json.dumps(document).encode())
            partial.replace(path)
        except FileNotFoundError:
            raise self.gone() from None


def _numbered(folder: Path) -> set[tuple[int, int]]:
    """Read which files ``{member}-{number}`` there are."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    pairs = (name.partition(".")[0].split("-") for name in names if not name.startswith("."))
    return {(int(member), int(number)) for member, number in pairs}
