"""Users' workflows as an ingress replica sees them: by the descriptions in the execution store.

The classes are never imported here. Parameters are checked against the schema that a class's
replica reported, which is cheap. What that accepts is checked by the class itself, in its replica,
since a JSON schema cannot say everything that annotations can; this adds about 10 ms to a submit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from deployments.runtime.failures import TransientFailure, as_stage_failure
from deployments.store.executions import ExecutionStore
from workflows.base import OutputFormat
from workflows.custom import CustomWorkflow, WorkflowDescription
from workflows.errors import InvalidParameters, ModelUnavailable, Problem, WorkflowUnavailable
from workflows.execution import Stage

CACHE_S = 1.0
"""Seconds for which a description is cached; a class that was replaced may have a new one."""

Validate = Callable[[Mapping[str, Any]], Awaitable[list[Problem]]]


class CustomWorkflows:
    """The users' workflows that clients may call.

    Parameters
    ----------
    formats : mapping of str to str
        Their names, and the result format of classes without a parameter for it.
    validators : mapping of str to callable
        By name, a call that has the class check parameters itself.
    validation_limit_s : float
        Time limit of such a call, seconds.
    """

    def __init__(
        self,
        store: ExecutionStore,
        formats: Mapping[str, OutputFormat],
        validators: Mapping[str, Validate],
        validation_limit_s: float,
    ) -> None:
        self._store = store
        self._formats = formats
        self._validators = validators
        self._validation_limit_s = validation_limit_s
        self._cached: dict[str, tuple[CustomWorkflow, dict[str, Any]]] = {}
        self._read_at: dict[str, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._formats

    def look_up(self, name: str) -> CustomWorkflow:
        """Return a workflow by its current description, which is cached for a second.

        Raises
        ------
        WorkflowUnavailable
            If its class was never imported.
        """
        cached = self._cached.get(name)
        now = time.monotonic()
        if cached is not None and now - self._read_at[name] < CACHE_S:
            return cached[0]
        found = self._store.description(name)
        if found is None:
            raise WorkflowUnavailable(
                name, "is not ready: its class is not imported yet; /readiness says why"
            )
        self._read_at[name] = now
        if cached is None or cached[1] != found:
            described = WorkflowDescription.model_validate(found)
            cached = CustomWorkflow(name, described, self._formats[name]), found
            self._cached[name] = cached
        return cached[0]

    async def check(self, workflow: CustomWorkflow, values: Mapping[str, Any]) -> None:
        """Have the class itself check parameters.

        Raises
        ------
        InvalidParameters
            With what the class found.
        WorkflowUnavailable
            If it does not answer.
        """
        name, limit_s = workflow.name, self._validation_limit_s
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
