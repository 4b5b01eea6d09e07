"""Which failures of a call between deployments are worth another try."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from workflows.errors import DiskFull, Earth2ServeError, StageFailed

logger = logging.getLogger("ray.serve")

R = TypeVar("R")

_TRANSIENT = (
    RayActorError,
    WorkerCrashedError,
    ObjectLostError,
    RaySystemError,
    GetTimeoutError,
    BackPressureError,
    DeploymentUnavailableError,
    ConnectionError,
)


class TransientFailure(StageFailed):
    """A stage was interrupted by the death of a process; another try may succeed."""


def is_transient(error: BaseException) -> bool:
    """Say whether the callee died or was out of reach, rather than said no."""
    if isinstance(error, TransientFailure):
        return True
    return isinstance(error, _TRANSIENT) and not isinstance(error, RayTaskError)


async def retry_transient(
    call: Callable[[], Awaitable[R]], what: str, *, attempts: int, pause_s: float
) -> R:
    """Make a call again while the callee died or was out of reach.

    Parameters
    ----------
    call : callable
    what : str
        For the log.
    attempts : int
    pause_s : float
        Before the second attempt; it doubles with each further one.

    Raises
    ------
    Exception
        What the call failed with: at once if that lasts, else at the last attempt.
    """
    for attempt in range(1, attempts):
        try:
            return await call()
        except Exception as error:
            if not is_transient(error):
                raise
            logger.warning("%s failed, again: %s", what, error)
        await asyncio.sleep(pause_s * 2 ** (attempt - 1))
    return await call()


def as_stage_failure(stage: str, error: Exception) -> Earth2ServeError:
    """Turn what a call raised into an error of ours that survives pickling.

    Ray wraps an exception of the callee into a class made on the fly, which the durable-execution
    library could not store.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        # What one deployment got from another.
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, Earth2ServeError):
            return cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(stage, in_words(cause))
        return StageFailed(stage, in_words(cause))
    if isinstance(error, Earth2ServeError):
        return error
    if is_transient(error):
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return TransientFailure(stage, f"{type(error).__name__}: {first_line}")
    return StageFailed(stage, in_words(error))


def in_words(error: BaseException) -> str:
    """Say what went wrong, for whoever asked for the forecast."""
    # Clients read it: where the file lies is not for them.
    text = error.strerror if isinstance(error, OSError) else None
    return legible(f"{type(error).__name__}: {text or error}")


def legible(text: str) -> str:
    """Replace what cannot be written everywhere.

    Halves of characters, as in file names that are not UTF-8, are no UTF-8, and PostgreSQL takes no
    NUL.
    """
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
