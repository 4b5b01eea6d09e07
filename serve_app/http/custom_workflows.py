"""Have a user's class check parameters, in its replica.

Parameters are first checked against the schema that the replica reported, which is cheap. What that
accepts is checked by the class itself, since a JSON schema cannot say everything that annotations
can; this adds about 10 ms to a submit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from deployments.runtime.failures import TransientFailure, as_stage_failure
from workflows.custom import CustomWorkflow
from workflows.errors import InvalidParameters, ModelUnavailable, Problem, WorkflowUnavailable
from workflows.execution import Stage

Validate = Callable[[Mapping[str, Any]], Awaitable[list[Problem]]]


class CustomChecks:
    """Has users' classes check parameters.

    Parameters
    ----------
    validators : mapping of str to callable
        By workflow, a call that has the class check parameters itself.
    limit_s : float
        Time limit of such a call, seconds.
    """

    def __init__(self, validators: Mapping[str, Validate], limit_s: float) -> None:
        self._validators = validators
        self._limit_s = limit_s

    async def check(self, workflow: CustomWorkflow, values: Mapping[str, Any]) -> None:
        """Have the class itself check parameters.

        Raises
        ------
        InvalidParameters
            With what the class found.
        WorkflowUnavailable
            If it does not answer.
        """
        name, limit_s = workflow.name, self._limit_s
        try:
            problems = await asyncio.wait_for(self._validators[name](values), limit_s)
        except TimeoutError:
            raise WorkflowUnavailable(
                name, f"did not check the parameters within {limit_s:g} s"
            ) from None
        except Exception as error:
            # Ray wraps what a replica raises, and has its own errors for a dead one.
            failure = as_stage_failure(Stage.INFERENCE, error)
            if not isinstance(failure, ModelUnavailable | TransientFailure):
                raise
            raise WorkflowUnavailable(name, f"cannot check the parameters now: {failure}") from None
        if problems:
            raise InvalidParameters(problems)
