"""What the Conductor's log tells of an execution's end and retries: one line each, with its id."""

from __future__ import annotations

import logging
import re

from dbos._error import DBOSMaxStepRetriesExceeded

from deployments.runtime.log_context import current_execution
from workflows.errors import StageFailed

logger = logging.getLogger("ray.serve")

_TOLD_BY_US = (
    "Asyncio task cancelled for workflow or step",
    "Exception encountered in asynchronous workflow",
)
_RETRY = re.compile(r"Step being automatically retried \(attempt (\d+) of (\d+)\)")
"""What DBOS says when a step has failed and is tried again; the number is that which failed."""


def log_failure(execution_id: str, reason: str, error: Exception) -> None:
    """Log why an execution failed.

    A stage that gave up says so itself, and the log of its replica has the traceback; ours would
    show how the error came here. Anything else is a mistake in this process.
    """
    if isinstance(error, StageFailed):
        logger.error("%s failed at %s: %s", execution_id, error.stage, reason)
    else:
        expected = isinstance(error, DBOSMaxStepRetriesExceeded)
        logger.error("%s failed: %s", execution_id, reason, exc_info=None if expected else error)


def log_retry(error: StageFailed, attempt: int, attempts: int) -> None:
    """Log that a step of the execution that is spoken of is tried again, and why."""
    subject = current_execution()
    logger.warning(
        "%s is tried again at %s, attempt %d of %d: %s",
        subject.execution_id if subject else "a step",
        error.stage,
        attempt,
        attempts,
        error,
        extra={"stage": str(error.stage)},
    )


def log_cancelled(execution_id: str) -> None:
    """Log that an execution was cancelled."""
    logger.info("%s cancelled", execution_id)


def log_completed(execution_id: str, seconds: float) -> None:
    """Log that an execution is done."""
    logger.info("%s completed in %.1f s", execution_id, seconds)


def capture_dbos_log() -> None:
    """Let what DBOS says be lines of our log, about the execution that it concerns.

    By itself it writes to this process's stderr, with tracebacks that name no execution.
    """
    dbos = logging.getLogger("dbos")
    if _say_it_ourselves not in dbos.filters:
        dbos.addFilter(_say_it_ourselves)


def _say_it_ourselves(record: logging.LogRecord) -> bool:
    """Say in our words what DBOS says, unless we have said it; its own handler gets nothing."""
    message = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    attempts = _RETRY.match(message)
    if attempts is not None and isinstance(error, StageFailed):
        failed, allowed = map(int, attempts.groups())
        log_retry(error, failed + 1, allowed)
    elif not message.startswith(_TOLD_BY_US):
        logger.log(record.levelno, "DBOS: %s", message, exc_info=record.exc_info)
    return False
