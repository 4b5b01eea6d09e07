"""Errors of calls between deployments, as Ray raises them."""

from __future__ import annotations

import errno
import pickle

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OwnerDiedError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.runtime.failures import (
    ReplicaDied,
    TransientFailure,
    as_stage_failure,
    describe_error,
    is_transient,
    redact,
    retry_transient,
    sanitize,
)
from deployments.runtime.retries import RetryPolicy
from workflows.errors import DiskFull, StageFailed, UploadFailed

POLICY = RetryPolicy(attempts=3, initial_delay_s=0.0)


def raised_by_callee(cause: Exception) -> RayTaskError:
    return RayTaskError("call", "Traceback ...", cause)


@pytest.mark.parametrize(
    "error", [ActorDiedError(), WorkerCrashedError(), OwnerDiedError("ab", None, "")]
)
def test_a_death_is_told_apart_from_other_transient_failures(error: Exception) -> None:
    failure = as_stage_failure("inference", error)
    assert type(failure) is ReplicaDied
    assert is_transient(error) and is_transient(failure)
    copy = pickle.loads(pickle.dumps(failure))
    assert type(copy) is ReplicaDied and copy.stage == "inference"


@pytest.mark.parametrize(
    "error",
    [
        ActorUnavailableError("Died, says the text", b"0" * 16),
        DeploymentUnavailableError("x"),
        ConnectionResetError(),
    ],
)
def test_an_unreachable_callee_is_not_a_dead_one(error: Exception) -> None:
    failure = as_stage_failure("inference", error)
    assert type(failure) is TransientFailure
    assert is_transient(error)


def test_an_error_of_the_callee_is_not_transient() -> None:
    error = raised_by_callee(ConnectionError("inside the callee"))
    assert not is_transient(error)
    failure = as_stage_failure("package", error)
    assert type(failure) is StageFailed
    assert str(failure) == "ConnectionError: inside the callee"


def test_our_own_errors_are_unwrapped() -> None:
    ours = UploadFailed("upload", "refused")
    nested = raised_by_callee(raised_by_callee(ours))
    assert as_stage_failure("package", nested) is ours
    assert as_stage_failure("package", ours) is ours


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_its_own_class_and_hides_the_path(code: int) -> None:
    failure = as_stage_failure("package", raised_by_callee(OSError(code, "full", "/secret/path")))
    assert type(failure) is DiskFull
    assert str(failure) == "OSError: full"


def test_a_failure_text_is_one_line() -> None:
    failure = as_stage_failure("package", ConnectionError("first\nsecond"))
    assert str(failure) == "ConnectionError: first"
    assert str(as_stage_failure("package", ConnectionError())) == "ConnectionError: "


def test_texts_can_be_stored_as_utf8_without_nul() -> None:
    assert sanitize("a\0b\udcffc") == "a\ufffdb?c"
    assert describe_error(ValueError("a\0")) == "ValueError: a\ufffd"


async def test_retry_transient_retries_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    errors = [ConnectionError("one"), ActorDiedError()]

    async def call() -> int:
        if errors:
            raise errors.pop(0)
        return 7

    assert await retry_transient(call, "writing", POLICY) == 7
    assert [record.getMessage()[:24] for record in caplog.records] == [
        "writing failed, retrying"
    ] * 2


async def test_retry_transient_does_not_retry_refusals() -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        raise UploadFailed("upload", "refused")

    with pytest.raises(UploadFailed):
        await retry_transient(call, "uploading", POLICY)
    assert made == 1


@pytest.mark.parametrize(
    "secret",
    [
        "https://a.example/c?sig=s3cret",
        "?sv=1&sig=s3cret",
        "Bearer s3cret",
        "eyJhbGciOi.s3cret",
        "sig=s3cret",
        "client_secret=s3cret",
    ],
)
def test_redact_removes_what_may_hold_a_secret(secret: str) -> None:
    assert redact(f"before {secret}\nafter", 100) == "before [removed] after"


def test_redact_limits_the_length() -> None:
    assert redact("x" * 1000, 20) == "x" * 20
