"""The error tree.

::

    Earth2ServeError
    ├── InvalidParameters        a request that can never run
    │   └── DeliveryForbidden    it names a place to which this server may not deliver
    ├── WorkflowNotFound         no such workflow, or not exposed
    ├── ExecutionNotFound
    ├── ResultsNotFound          no such file in an execution's results
    ├── IdempotencyConflict      same Idempotency-Key, other body
    ├── QueueFull
    ├── StorageFull              no room for a result, now or ever
    ├── IllegalTransition        a state change that the life of an execution does not allow
    ├── StaleConductor           a call that carries a superseded fencing token
    ├── ExecutionCancelled
    └── StageFailed              a stage that gave up, with its reason
        ├── ModelUnavailable     a model that could not be loaded
        ├── DiskFull             no room was left for what a stage writes
        ├── UploadFailed         results that Blob Storage did not take
        └── IngestionFailed      an item that the catalogue did not take

Errors cross process boundaries by pickle, which calls the constructor with ``args``; so every
constructor passes on exactly what it was given.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


class Earth2ServeError(Exception):
    """Base of all errors that this project raises on purpose."""

    def __new__(cls, *args: Any) -> Self:
        """Make one that pickles as the module says, whatever was imported.

        Dask, which Earth2Studio imports, has tblib make every exception pickle its traceback and
        all that it came from, which in a deep stack ends as a RecursionError.
        """
        copyreg.dispatch_table.pop(cls, None)
        return super().__new__(cls, *args)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one field of a request."""

    field: str
    """Dotted path below the request body, such as ``parameters.n_steps``."""
    message: str
    """What is wrong and what would be allowed."""
    kind: str = "value_error"


class InvalidParameters(Earth2ServeError):
    """A request whose parameters can never run."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        return "; ".join(f"{p.field}: {p.message}" for p in self.problems)


class DeliveryForbidden(InvalidParameters):
    """A request for a delivery to a place that is not on the server's lists."""


class WorkflowNotFound(Earth2ServeError):
    """No workflow of that name can be called here."""


class ExecutionNotFound(Earth2ServeError):
    """No execution of that id belongs to that workflow."""


class ResultsNotFound(Earth2ServeError):
    """An execution has no such result file."""


class IdempotencyConflict(Earth2ServeError):
    """An Idempotency-Key was used before with another request body."""


class QueueFull(Earth2ServeError):
    """The queue is at its bound.

    Parameters
    ----------
    queued : int
        Executions waiting.
    max_size : int
        The bound.
    """

    def __init__(self, queued: int, max_size: int) -> None:
        super().__init__(queued, max_size)
        self.queued = queued
        self.max_size = max_size

    def __str__(self) -> str:
        return f"the queue is full: {self.queued} executions wait, {self.max_size} are allowed"


class StorageFull(Earth2ServeError):
    """A result has no room beside what is there and what will still be written.

    Parameters
    ----------
    needed : int
        Bytes that it needs at most; 0 if nobody knows.
    left : int
        Bytes that are left for it.
    at_most : int
        Bytes that there would be if no other result was kept.
    """

    def __init__(self, needed: int, left: int, at_most: int) -> None:
        super().__init__(needed, left, at_most)
        self.needed = needed
        self.left = left
        self.at_most = at_most

    @property
    def for_good(self) -> bool:
        """Whether it would not fit either if no other result was kept."""
        return lacks(self.needed, self.at_most)

    def __str__(self) -> str:
        return f"{self.needed} bytes are needed for the result, {self.left} are left"


def lacks(needed: int, left: int) -> bool:
    """Say whether a result does not fit; one of unknown size needs more than nothing."""
    return needed > left or left <= 0


class IllegalTransition(Earth2ServeError):
    """A state change that the life of an execution does not allow."""


class StaleConductor(Earth2ServeError):
    """A call that carries a fencing token older than one already seen."""


class ExecutionCancelled(Earth2ServeError):
    """The execution was cancelled while this ran."""


class StageFailed(Earth2ServeError):
    """A stage gave up.

    Parameters
    ----------
    stage : str
        Where, one of `workflows.execution.Stage`.
    reason : str
        Why, in words for the person who asked for the forecast.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ModelUnavailable(StageFailed):
    """A model or data source could not be loaded."""


class DiskFull(StageFailed):
    """A stage that had no room left for what it writes."""


class UploadFailed(StageFailed):
    """Results that could not be uploaded."""


class IngestionFailed(StageFailed):
    """An item that could not be registered."""
