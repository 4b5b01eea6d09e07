"""The states of an execution, and errors on their way between processes."""

from __future__ import annotations

import pickle
import re

import pytest

from workflows.errors import (
    Earth2ServeError,
    IllegalTransition,
    InvalidParameters,
    ModelUnavailable,
    Problem,
    QueueFull,
    StageFailed,
)
from workflows.execution import FINISHED, TRANSITIONS, Status, check_transition, new_execution_id


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(Status)


@pytest.mark.parametrize("status", list(Status))
def test_staying_is_always_allowed(status: Status) -> None:
    check_transition(status, status)


@pytest.mark.parametrize(
    ("current", "new"),
    [
        (Status.COMPLETED, Status.RUNNING),
        (Status.COMPLETED, Status.FAILED),
        (Status.CANCELLED, Status.COMPLETED),
        (Status.QUEUED, Status.COMPLETED),
        (Status.EXPIRED, Status.QUEUED),
    ],
)
def test_what_does_not_follow_is_refused(current: Status, new: Status) -> None:
    with pytest.raises(IllegalTransition, match=f"is {current} cannot become {new}"):
        check_transition(current, new)


def test_no_finished_state_goes_on_running() -> None:
    for status in FINISHED:
        assert not TRANSITIONS[status] & {Status.RUNNING, Status.PENDING_RESULTS}


def test_ids_are_those_that_clients_expect() -> None:
    assert re.fullmatch(r"exec_\d{10}_[0-9a-f]{8}", new_execution_id())
    assert len({new_execution_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "error",
    [
        InvalidParameters([Problem("parameters.n_steps", "too many")]),
        QueueFull(20, 20),
        StageFailed("package", "a step is missing"),
        ModelUnavailable("inference", "no weights"),
    ],
)
def test_errors_survive_pickling(error: Earth2ServeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
