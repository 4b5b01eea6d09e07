"""Errors that this project raises on purpose.

::

    Earth2ServeError
    ├── InvalidParameters        a request that can never run
    │   └── DeliveryForbidden    a delivery to a place that this server does not allow
    ├── WorkflowNotFound         unknown, or not exposed
    ├── WorkflowUnavailable      a user's workflow that is not loaded, or does not answer
    ├── ExecutionNotFound
    ├── ResultsNotFound          no such file in an execution's results
    ├── IdempotencyConflict      an Idempotency-Key used again with another body
    ├── QueueFull
    ├── StorageFull              no room for a result, now or ever
    ├── IllegalTransition        a change of state that an execution does not allow
    ├── StaleConductor           a call with a superseded fencing token
    ├── ExecutionCancelled
    └── StageFailed              a stage that failed, with its reason
        ├── ModelUnavailable     a model that could not be loaded
        ├── DiskFull             no room for what a stage writes
        ├── UploadFailed         results that Blob Storage did not accept
        ├── IngestionFailed      an item that the GeoCatalog did not accept
        └── TransientFailure     may be retried, in `deployments.runtime.failures`

`serve_app` adds errors of HTTP requests below the root.

Errors cross process boundaries by pickle, which calls the constructor with ``args``. Every
constructor therefore passes exactly its own arguments to ``super().__init__``.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


class Earth2ServeError(Exception):
    """Base of all errors that this project raises on purpose."""

    def __new__(cls, *args: Any) -> Self:
        """Create an error that pickles by its arguments, regardless of imported libraries.

        Dask, which Earth2Studio imports, makes tblib pickle every exception with its traceback and
        causes. From a deep stack that ends in a RecursionError.
        """
        copyreg.dispatch_table.pop(cls, None)
        return super().__new__(cls, *args)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one field of a request."""

    field: str
    """Dotted path below the request body, such as ``parameters.n_steps``."""
    message: str
    """What is wrong and what is allowed."""
    kind: str = "value_error"


class InvalidParameters(Earth2ServeError):
    """A request whose parameters can never run."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = list(problems)

    def __str__(self) -> str:
        return "; ".join(f"{p.field}: {p.message}" for p in self.problems)


class DeliveryForbidden(InvalidParameters):
    """A request for a delivery to a place that is not on the server's allow-lists."""


class WorkflowNotFound(Earth2ServeError):
    """No workflow of that name can be called here."""

    def __init__(self, workflow: str) -> None:
        super().__init__(workflow)
        self.workflow = workflow

    def __str__(self) -> str:
        return f"workflow not found: {self.workflow[:100]}"


class WorkflowUnavailable(Earth2ServeError):
    """A user's workflow whose class is not imported yet, or does not answer."""

    def __init__(self, workflow: str, reason: str) -> None:
        super().__init__(workflow, reason)
        self.workflow = workflow
        self.reason = reason

    def __str__(self) -> str:
        return f"workflow {self.workflow} {self.reason}"


class ExecutionNotFound(Earth2ServeError):
    """No execution of that id belongs to that workflow."""

    def __init__(self, execution_id: str) -> None:
        super().__init__(execution_id)
        self.execution_id = execution_id

    def __str__(self) -> str:
        return f"execution not found: {self.execution_id[:64]}"


class ResultsNotFound(Earth2ServeError):
    """An execution has no results, or no such file among them."""


class IdempotencyConflict(Earth2ServeError):
    """An Idempotency-Key was used before with another request body."""


class QueueFull(Earth2ServeError):
    """The queue has reached its limit."""

    def __init__(self, queued: int, max_size: int) -> None:
        super().__init__(queued, max_size)
        self.queued = queued
        self.max_size = max_size

    def __str__(self) -> str:
        return f"the queue is full: {self.queued} executions wait, {self.max_size} are allowed"


class StorageFull(Earth2ServeError):
    """A result does not fit beside those stored and those being written.

    Parameters
    ----------
    needed : int
        Upper bound on the result's size, bytes; 0 if unknown.
    available : int
        Bytes that it may use now.
    capacity : int
        Bytes that it could use if no other result were kept.
    """

    def __init__(self, needed: int, available: int, capacity: int) -> None:
        super().__init__(needed, available, capacity)
        self.needed = needed
        self.available = available
        self.capacity = capacity

    @property
    def is_permanent(self) -> bool:
        """Whether it would not fit even if no other result were kept."""
        return not fits(self.needed, self.capacity)

    def __str__(self) -> str:
        return f"the result needs {self.needed} bytes, {self.available} are available"


def fits(needed: int, available: int) -> bool:
    """Return whether a result fits; one of unknown size (0) needs at least one byte."""
    return available >= max(needed, 1)


class IllegalTransition(Earth2ServeError):
    """A change of state that an execution does not allow."""


class StaleConductor(Earth2ServeError):
    """A call with a fencing token that is older than the newest one seen."""

    def __init__(self, fence: int, newest: int) -> None:
        super().__init__(fence, newest)
        self.fence = fence
        self.newest = newest

    def __str__(self) -> str:
        return f"token {self.fence} was superseded by {self.newest}"


class ExecutionCancelled(Earth2ServeError):
    """The execution was cancelled while this ran."""


class StageFailed(Earth2ServeError):
    """A stage failed.

    Parameters
    ----------
    stage : str
        Where, one of `workflows.execution.Stage`.
    reason : str
        Why, in words for the client.
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
    """The disk has no room for what a stage writes."""


class UploadFailed(StageFailed):
    """Results could not be uploaded."""


class IngestionFailed(StageFailed):
    """An item could not be registered."""
