"""Redirects DBOS's log to ours: one line for each message, with its execution."""

from __future__ import annotations

import logging
import re

from deployments.runtime.log_context import current_execution
from workflows.errors import StageFailed

logger = logging.getLogger("ray.serve")

_LOGGED_BY_US = (
    "Asyncio task cancelled for workflow or step",
    "Exception encountered in asynchronous workflow",
)
_RETRY = re.compile(r"Step being automatically retried \(attempt (\d+) of (\d+)\)")
"""DBOS's message when a step has failed and is retried; the number is that of the failure."""


def capture_dbos_log() -> None:
    """Write DBOS's messages to our log instead of this process's stderr.

    DBOS itself writes tracebacks that name no execution.
    """
    dbos = logging.getLogger("dbos")
    if _redirect not in dbos.filters:
        dbos.addFilter(_redirect)


def _redirect(record: logging.LogRecord) -> bool:
    """Log a message of DBOS unless we log the same event ourselves; keep it from DBOS's handler."""
    message = record.getMessage()
    error = record.exc_info[1] if record.exc_info else None
    retry = _RETRY.match(message)
    if retry is not None and isinstance(error, StageFailed):
        execution = current_execution()
        logger.warning(
            "%s is retried at %s, attempt %d of %s: %s",
            execution.execution_id if execution else "a step",
            error.stage,
            int(retry[1]) + 1,
            retry[2],
            error,
            extra={"stage": str(error.stage)},
        )
    elif not message.startswith(_LOGGED_BY_US):
        logger.log(record.levelno, "DBOS: %s", message, exc_info=record.exc_info)
    return False
