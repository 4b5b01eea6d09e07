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
    ├── IllegalTransition        a state change that the life of an execution does not allow
    ├── StaleConductor           a call that carries a superseded fencing token
    ├── ExecutionCancelled
    └── StageFailed              a stage that gave up, with its reason
        ├── ModelUnavailable     a model that could not be loaded
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


class UploadFailed(StageFailed):
    """Results that could not be uploaded."""


class IngestionFailed(StageFailed):
    """An item that could not be registered."""
