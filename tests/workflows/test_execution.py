"""The states of an execution and its ids."""

from __future__ import annotations

import re

import pytest

from workflows.errors import IllegalTransition
from workflows.execution import FINISHED, TRANSITIONS, Status, check_transition, new_execution_id


def test_every_state_has_transitions() -> None:
    assert set(TRANSITIONS) == set(Status)


@pytest.mark.parametrize("status", list(Status))
def test_staying_in_a_state_is_always_allowed(status: Status) -> None:
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
def test_other_transitions_are_refused(current: Status, new: Status) -> None:
    with pytest.raises(IllegalTransition, match=f"is {current} cannot become {new}"):
        check_transition(current, new)


def test_a_finished_execution_never_runs_again() -> None:
    for status in FINISHED:
        assert not TRANSITIONS[status] & {Status.RUNNING, Status.PENDING_RESULTS}


def test_ids_have_the_format_that_clients_expect() -> None:
    assert re.fullmatch(r"exec_\d{10}_[0-9a-f]{8}", new_execution_id())
    assert len({new_execution_id() for _ in range(100)}) == 100
