"""Working records as files.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deployments.results.work import (
    CHECKPOINTS,
    CONDITIONING,
    PLAN,
    STEPS,
    StoredObject,
    Work,
    encode_plan,
    not_being_written,
)
from deployments.runtime.files import flush
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import ExecutionCancelled, StaleConductor

EXPORT = "export.json"
LOCK_POLL_S = 0.05


class DiskWork(Work):
    """Working records as files. Other deployments may keep further files in their folder."""

    plan_record = PLAN
    witness = CONDITIONING

    def __init__(self, path: Path, execution_id: str) -> None:
        super().__init__(execution_id)
        self.path = path
        self._fences = path / "fences"

    def create_folder(self, fence: int) -> None:
        """Create the folder, unless it exists; StaleConductor if a newer fence was seen."""
        self._fences.mkdir(parents=True, exist_ok=True)
        self.check_fence(fence)

    def create(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Record the plan and provenance; of several attempts the first one counts."""
        self.create_folder(fence)
        for folder in (STEPS, CONDITIONING, CHECKPOINTS):
            (self.path / folder).mkdir(exist_ok=True)
        try:
            recorded_plan, recorded_provenance = self.read_plan()
        except FileNotFoundError:
            record = encode_plan(plan, provenance)
            self._save(PLAN, lambda file: file.write(record))
            return provenance
        self._check_same_plan(recorded_plan, plan)
        return recorded_provenance

    def check_fence(self, fence: int) -> None:
        """Check that no newer fence was seen, and remember this one.

        Every fence is a separate file, so the newest can only increase, without a lock.
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

    def record_export(self, exported: StoredObject) -> None:
        """Record that the exported file is complete."""
        document = [exported.key, exported.size, exported.sha256]
        self._save(EXPORT, lambda file: file.write(json.dumps(document).encode()))

    def forget_export(self) -> None:
        """Remove the record that the exported file is complete."""
        self._remove(EXPORT)

    def exported(self) -> StoredObject | None:
        """Return the exported file; None if it is not complete."""
        try:
            return StoredObject(*self._load(EXPORT))
        except FileNotFoundError:
            return None

    @contextmanager
    def export_lock(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Hold the lock of the export, which is released when its process ends.

        Raises ExecutionCancelled if `should_stop` becomes true while another call holds it.
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

    def _open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")

    def _exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def _names(self, folder: str) -> list[str]:
        try:
            names = os.listdir(self.path / folder)
        except FileNotFoundError:
            return []
        return [name for name in names if not name.startswith(".")]

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        partial = path.with_name(f".{secrets.token_hex(8)}")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None

    def _save(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        path = self.path / name
        partial = path.with_name(f".{secrets.token_hex(8)}")
        try:
            try:
                with partial.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except OSError:
                # On a full disk, others need the space.
                partial.unlink(missing_ok=True)
                raise
            flush(path.parent)
        except FileNotFoundError:
            raise not_being_written(self.execution_id) from None

    def _remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
