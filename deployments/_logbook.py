"""What the Conductor's log tells of an execution's end: one line, with its id."""

from __future__ import annotations

import logging

from dbos._error import DBOSMaxStepRetriesExceeded

from workflows.errors import StageFailed

logger = logging.getLogger("ray.serve")

_TOLD_BY_US = (
    "Asyncio task cancelled for workflow or step",
    "Exception encountered in asynchronous workflow",
)


def tell_failure(execution_id: str, reason: str, error: Exception) -> None:
    """Log why an execution failed.

    A stage that gave up says so itself, and the log of its replica has the traceback; ours would
    show how the error came here. Anything else is a mistake in this process.
    """
    if isinstance(error, StageFailed):
        logger.error("%s failed at %s: %s", execution_id, error.stage, reason)
    else:
        expected = isinstance(error, DBOSMaxStepRetriesExceeded)
        logger.error("%s failed: %s", execution_id, reason, exc_info=None if expected else error)


def tell_cancelled(execution_id: str) -> None:
    """Log that an execution was cancelled."""
    logger.info("%s cancelled", execution_id)


def tell_completed(execution_id: str, seconds: float) -> None:
    """Log that an execution is done."""
    logger.info("%s completed in %.1f s", execution_id, seconds)


def quieten_dbos() -> None:
    """Drop DBOS's own tracebacks of failures and cancels: they name no execution."""
    dbos = logging.getLogger("dbos")
    if _told_elsewhere not in dbos.filters:
        dbos.addFilter(_told_elsewhere)


def _told_elsewhere(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_TOLD_BY_US)
