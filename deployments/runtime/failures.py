"""Errors of calls between deployments: which may be retried, and how they are reported."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.runtime.retries import RetryPolicy, retry
from workflows.errors import DiskFull, Earth2ServeError, StageFailed

logger = logging.getLogger("ray.serve")

R = TypeVar("R")

_SECRETS = re.compile(
    r"https?://\S+|\S*\?\S*=\S*|\bbearer\s+\S+|\beyJ\S+|\b(?:sig|client_secret)=\S+", re.IGNORECASE
)
"""URLs, query strings and tokens, which a service may quote."""

_PROCESS_DIED = (ActorDiedError, OwnerDiedError, WorkerCrashedError)
_TRANSIENT = (
    *_PROCESS_DIED,
    RayActorError,
    ObjectLostError,
    RaySystemError,
    GetTimeoutError,
    BackPressureError,
    DeploymentUnavailableError,
    ConnectionError,
)


class TransientFailure(StageFailed):
    """A stage failed, but another attempt may succeed."""


class ReplicaDied(TransientFailure):
    """The process that ran a stage died."""


def is_transient(error: BaseException) -> bool:
    """Return whether the callee died or was unreachable, rather than refused the call."""
    if isinstance(error, TransientFailure):
        return True
    return isinstance(error, _TRANSIENT) and not isinstance(error, RayTaskError)


async def retry_transient(call: Callable[[], Awaitable[R]], what: str, policy: RetryPolicy) -> R:
    """Repeat a call to a deployment while the callee dies or is unreachable.

    Raises the error of the last attempt, or the first that is not transient. `what` names the call
    in the log.
    """
    return await retry(
        call,
        policy,
        retry_if=is_transient,
        on_retry=lambda error, _: logger.warning("%s failed, retrying: %s", what, error),
    )


def as_stage_failure(stage: str, error: Exception) -> Earth2ServeError:
    """Return the error of a call as one of this project, which survives pickling.

    Ray wraps an exception of the callee in a class made at run time, which DBOS cannot store.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        # A callee may have called another deployment in turn.
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, Earth2ServeError):
            return cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(stage, describe_error(cause))
        return StageFailed(stage, describe_error(cause))
    if isinstance(error, Earth2ServeError):
        return error
    if is_transient(error):
        kind = ReplicaDied if isinstance(error, _PROCESS_DIED) else TransientFailure
        first_line = str(error).strip().partition("\n")[0]
        return kind(stage, f"{type(error).__name__}: {first_line}")
    return StageFailed(stage, describe_error(error))


def describe_error(error: BaseException) -> str:
    """Return the class and text of an error for a client, without file names."""
    text = error.strerror if isinstance(error, OSError) else None
    return sanitize(f"{type(error).__name__}: {text or error}")


def sanitize(text: str) -> str:
    """Replace the characters that UTF-8 or PostgreSQL cannot store.

    These are lone surrogates, as in file names that are not UTF-8, and NUL.
    """
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def redact(text: str, max_length: int) -> str:
    """Return a service's text on one line, without parts that may be secret."""
    return sanitize(_SECRETS.sub("[removed]", " ".join(text.split()))[:max_length])
