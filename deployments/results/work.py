"""Working records of one execution: its plan, what is written, and data that models exchange.

`deployments.results.disk_work` stores them as files, `deployments.results.blob_work` as blobs.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Checkpoint
from deployments.results.zarr import EARLIER_SEPARATOR, SEPARATOR
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StageFailed
from workflows.execution import Stage

PLAN = "plan.json"
STEPS, CONDITIONING, CHECKPOINTS = "steps", "conditioning", "checkpoints"


@dataclass(frozen=True)
class StoredObject:
    """A file or blob that was written completely."""

    key: str
    """Path below the folder of the result."""
    size: int
    """Bytes."""
    sha256: str | None
    """Hexadecimal; None for a whole Zarr store."""
    md5: str | None = None
    """Hexadecimal; only of blobs, of which a listing has it."""

    def agrees(self, size: int, sha256: str | None, md5: str | None = None) -> bool:
        """Return whether what was found is what was written, as far as both are known.

        Earlier releases recorded no checksums of chunks that they did not deliver.
        """
        return (
            size == self.size
            and (self.sha256 is None or sha256 == self.sha256)
            and (self.md5 is None or md5 is None or md5 == self.md5)
        )


def not_being_written(execution_id: str) -> StageFailed:
    """Return the error for an execution that was never created, or has been removed.

    Not StaleConductor, which ends the process that receives it: a removed folder does not mean
    that another Conductor took over, and all other executions of that process would end with it.
    """
    return StageFailed(Stage.PACKAGE, f"{execution_id} is not being written")


class Work(ABC):
    """Working records of one execution, removed when it ends.

    Any method may be called concurrently from any number of threads and processes, and may be
    repeated. Those that write raise StageFailed if the execution was removed.
    """

    plan_record: ClassVar[str]
    """Name of the record with the plan and provenance."""
    witness: ClassVar[str]
    """A record or folder that exists as long as the execution may be written."""

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id

    @abstractmethod
    def create(self, plan: Plan, provenance: Provenance, fence: int) -> Provenance:
        """Record the plan and provenance, and return the recorded provenance.

        Of several attempts the first one counts. Raises StaleConductor if a newer fence was seen,
        and StageFailed if another plan was recorded.
        """

    def read_plan(self) -> tuple[Plan, Provenance]:
        """Return what was recorded; FileNotFoundError if there is no record."""
        record = self._load(self.plan_record)
        return Plan.model_validate(record["plan"]), Provenance.model_validate(record["provenance"])

    def chunk_separator(self) -> str:
        """Return what separates the numbers in keys of chunks; FileNotFoundError as `read_plan`."""
        return str(self._load(self.plan_record).get("chunk_separator", EARLIER_SEPARATOR))

    @abstractmethod
    def check_fence(self, fence: int) -> None:
        """Check that no newer fence was seen, and remember this one.

        Raises StaleConductor if a newer fence was seen, and StageFailed if the execution is not
        being written.
        """

    def record_step(self, member: int, time_index: int, objects: Sequence[StoredObject]) -> None:
        """Record that one time step of one member is written."""
        self._write(_step(member, time_index), json.dumps(list(map(astuple, objects))).encode())

    def forget_step(self, member: int, time_index: int) -> None:
        """Remove the record that a time step is written: its objects are lost or damaged."""
        self._remove(_step(member, time_index))

    def is_written(self, member: int, time_index: int) -> bool:
        """Return whether one time step of one member is written."""
        try:
            self.step_objects(member, time_index)
        except FileNotFoundError:
            return False
        return True

    def step_objects(self, member: int, time_index: int) -> list[StoredObject]:
        """Return the objects of one time step of one member; FileNotFoundError if not written."""
        return [StoredObject(*row) for row in self._load(_step(member, time_index))]

    def written_steps(self) -> set[tuple[int, int]]:
        """Return all (member, time index) that have a record, which may be cut."""
        return self._numbers(STEPS)

    def filter_written(self, steps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of some (member, time index) that are written."""
        return [step for step in steps if self.is_written(*step)]

    def write_conditioning(self, member: int, step: int, field: NDArray[np.float32]) -> None:
        """Keep a field that conditions a time step, until the execution ends.

        It survives a power failure: a member of the conditioning forecast is recorded as complete,
        so a lost field would not be computed again.
        """
        self._save(_conditioning_field(member, step), lambda file: np.save(file, field))

    def read_conditioning(self, member: int, step: int) -> NDArray[np.float32] | None:
        """Return such a field; None if it is not written yet.

        Raises StageFailed if the execution is not being written.
        """
        try:
            with self._open(_conditioning_field(member, step)) as file:
                field: NDArray[np.float32] = np.load(file)
        except FileNotFoundError:
            if not self._exists(self.witness):
                raise not_being_written(self.execution_id) from None
            return None
        except (ValueError, EOFError):
            # A retry finds that it is not written, and computes it again.
            self._remove(_conditioning_field(member, step))
            raise StageFailed(
                Stage.INFERENCE, f"conditioning field {step} of member {member} was damaged"
            ) from None
        return field

    def conditioning_steps(self) -> set[tuple[int, int]]:
        """Return all (member, step) whose conditioning field is written."""
        return self._numbers(CONDITIONING)

    def checkpoint_steps(self, member: int) -> list[int]:
        """Return the time steps at which a member has a checkpoint, latest first."""
        numbers = self._numbers(CHECKPOINTS)
        return sorted((step for owner, step in numbers if owner == member), reverse=True)

    def write_checkpoint(self, member: int, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint until it is removed or the execution ends."""
        self._save(_checkpoint(member, checkpoint.step), checkpoint.write)

    def read_checkpoint(self, member: int, step: int) -> Checkpoint:
        """Return a checkpoint; FileNotFoundError if there is none, ValueError if it is damaged."""
        with self._open(_checkpoint(member, step)) as file:
            return Checkpoint.read(step, file)

    def remove_checkpoint(self, member: int, step: int) -> None:
        """Remove a checkpoint, if it exists."""
        self._remove(_checkpoint(member, step))

    def _check_same_plan(self, recorded: Plan, plan: Plan) -> None:
        if recorded != plan:
            reason = f"{self.execution_id} was created with a different plan"
            raise StageFailed(Stage.PACKAGE, reason)

    def _load(self, name: str) -> Any:
        """Return a JSON record; FileNotFoundError if it does not exist.

        A power failure can leave one empty or cut: that counts as none.
        """
        with self._open(name) as file:
            try:
                return json.load(file)
            except ValueError:
                raise FileNotFoundError(name) from None

    def _numbers(self, folder: str) -> set[tuple[int, int]]:
        """Return the numbers of all records ``{member}-{number}``, with any suffix."""
        pairs = (name.partition(".")[0].split("-") for name in self._names(folder))
        return {(int(member), int(number)) for member, number in pairs}

    @abstractmethod
    def _open(self, name: str) -> IO[bytes]:
        """Open a record for reading; FileNotFoundError if it does not exist."""

    @abstractmethod
    def _exists(self, name: str) -> bool: ...

    @abstractmethod
    def _names(self, folder: str) -> Iterable[str]:
        """Return the names of all complete records in a folder, which may not exist."""

    @abstractmethod
    def _write(self, name: str, content: bytes) -> None:
        """Write a JSON record, which appears complete."""

    @abstractmethod
    def _save(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a record that survives a power failure, and appears complete."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove a record, if it exists."""


def encode_plan(plan: Plan, provenance: Provenance) -> bytes:
    """Return the record that `Work.read_plan` reads."""
    record = {
        "plan": plan.model_dump(mode="json"),
        "provenance": provenance.model_dump(mode="json"),
        "chunk_separator": SEPARATOR,
    }
    return json.dumps(record).encode()


def _step(member: int, time_index: int) -> str:
    return f"{STEPS}/{member}-{time_index}"


def _conditioning_field(member: int, step: int) -> str:
    return f"{CONDITIONING}/{member}-{step}.npy"


def _checkpoint(member: int, step: int) -> str:
    return f"{CHECKPOINTS}/{member}-{step}.npz"
