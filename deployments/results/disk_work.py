"""The working files of one execution: its plan, its fences and what has been written.

::

    {work_dir}/{execution_id}/plan.json                         plan and provenance
                              fences/{fence}                    every fence that was seen
                              steps/{member}-{time}             objects of a time step
                              conditioning/{member}-{step}.npy
                              checkpoints/{member}-{step}.npz
                              export.json, export.lock

Every record is a file that appears complete or not at all. Any number of processes can therefore
add records, and any of them can be killed at any time.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

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
from workflows.errors import ExecutionCancelled, StaleConductor

LOCK_POLL_S = 0.05


class DiskWork:
    """Implements `deployments.results.protocols.Work` with files.

    Parameters
    ----------
    path : Path
        Folder for the files. Other deployments may keep further files in it.
    execution_id : str
    """

    def __init__(self, path: Path, execution_id: str) -> None:
        self.path = path
        self.execution_id = execution_id
        self._fences = path / "fences"
        self._steps = path / "steps"
        self._conditioning = path / "conditioning"
        self._checkpoints = path / "checkpoints"

    def create_folder(self, fence: int) -> None:
        """Create the folder, unless it exists, and check the fence.

        Raises
        ------
        StaleConductor
            If a newer fence was seen.
        """
        self._fences.mkdir(parents=True, exist_ok=True)
        self.check_fence(fence)

    # Plan and fences.

    def create(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Record the plan and provenance; of several attempts the first one counts."""
        self.create_folder(fence)
        self._steps.mkdir(exist_ok=True)
        self._conditioning.mkdir(exist_ok=True)
        try:
            recorded_plan, recorded_provenance = self.read_plan()
        except FileNotFoundError:
            self._write(self.path / PLAN, encode_plan(plan, provenance))
            return provenance
        check_same_plan(self.execution_id, recorded_plan, plan)
        return recorded_provenance

    def read_plan(self) -> tuple[Plan, Provenance]:
        """Return what was recorded; FileNotFoundError if there is no record."""
        return decode_plan((self.path / PLAN).read_bytes())

    def check_fence(self, fence: int) -> None:
        """Check that no newer fence was seen, and remember this one.

        Every fence is a file of its own, so the newest can only rise, without a lock.
        """
        try:
            seen = {int(name) for name in os.listdir(self._fences)}
            if fence not in seen:
                (self._fences / str(fence)).touch()
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None
        newest = max(seen, default=fence)
        if fence < newest:
            raise StaleConductor(fence, newest)

    # Time steps.

    def record_step(self, member: int, time_index: int, objects: Sequence[StoredObject]) -> None:
        """Record that one time step of one member is written."""
        self._write(self._step(member, time_index), encode_step(objects))

    def is_written(self, member: int, time_index: int) -> bool:
        """Return whether one time step of one member is written."""
        return self._step(member, time_index).exists()

    def filter_written(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of some (member, time index) that are written."""
        return [step for step in steps if self.is_written(*step)]

    def step_objects(self, member: int, time_index: int) -> list[StoredObject]:
        """Return the objects of one time step of one member."""
        return decode_step(self._step(member, time_index).read_bytes())

    def written_steps(self) -> set[tuple[int, int]]:
        """Return all (member, time index) that are written."""
        return _numbered_files(self._steps)

    def _step(self, member: int, time_index: int) -> Path:
        return self._steps / f"{member}-{time_index}"

    # Fields of one model that condition another.

    def write_conditioning(self, member: int, step: int, field: NDArray[np.float32]) -> None:
        """Keep a field that conditions a time step; it survives a power failure.

        A member of the conditioning forecast is recorded as complete, so a lost field would not be
        computed again.
        """
        path = self._conditioning_field(member, step)
        self._write_durably(path, lambda file: np.save(file, field))

    def read_conditioning(self, member: int, step: int) -> NDArray[np.float32] | None:
        """Return such a field; None if it is not written yet."""
        try:
            field: NDArray[np.float32] = np.load(self._conditioning_field(member, step))
        except FileNotFoundError:
            if not self._conditioning.exists():
                raise not_being_written(self.execution_id) from None
            return None
        return field

    def conditioning_steps(self) -> set[tuple[int, int]]:
        """Return all (member, step) whose conditioning field is written."""
        return _numbered_files(self._conditioning)

    def _conditioning_field(self, member: int, step: int) -> Path:
        return self._conditioning / f"{member}-{step}.npy"

    # Checkpoints.

    def checkpoint_steps(self, member: int) -> list[int]:
        """Return the time steps at which a member has a checkpoint, latest first."""
        return latest_first(_numbered_files(self._checkpoints), member)

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is removed or the execution ends."""
        try:
            self._checkpoints.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None
        self._write_durably(self._checkpoint(member, checkpoint.step), checkpoint.write)

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Return a checkpoint; ValueError if it is damaged."""
        with self._checkpoint(member, step).open("rb") as file:
            return Checkpoint.read(step, file)

    def remove_checkpoint(self, member: int, step: int) -> None:
        """Remove a checkpoint, if it exists."""
        self._checkpoint(member, step).unlink(missing_ok=True)

    def _checkpoint(self, member: int, step: int) -> Path:
        return self._checkpoints / f"{member}-{step}.npz"

    # NetCDF export.

    def record_export(self, exported: StoredObject) -> None:
        """Record that the exported file is complete."""
        document = [exported.key, exported.size, exported.sha256]
        self._write(self.path / "export.json", json.dumps(document).encode())

    def exported(self) -> StoredObject | None:
        """Return the exported file; None if it is not complete."""
        try:
            return StoredObject(*json.loads((self.path / "export.json").read_bytes()))
        except FileNotFoundError:
            return None

    @contextmanager
    def export_lock(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Hold the lock of the export; it is released when its process ends.

        Raises
        ------
        ExecutionCancelled
            If `should_stop` becomes true while another call holds it.
        """
        try:
            lock = os.open(self.path / "export.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None
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

    def _write_durably(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file that survives a power failure."""
        partial = path.with_name(f".{secrets.token_hex(8)}")
        try:
            try:
                with partial.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except OSError:
                # On a full disk it would take space that others need.
                partial.unlink(missing_ok=True)
                raise
            folder = os.open(path.parent, os.O_RDONLY)
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, path: Path, content: bytes) -> None:
        partial = path.with_name(f".{secrets.token_hex(8)}")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None


def _numbered_files(folder: Path) -> set[tuple[int, int]]:
    """Return the numbers of all files ``{member}-{number}``."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return parse_numbers(name for name in names if not name.startswith("."))
