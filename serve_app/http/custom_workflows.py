"""Users' own workflows, as an ingress replica knows them: from what the Conductor has recorded.

Nothing of a class is imported here. Parameters are checked against the schema that its replica
gave; a class with checks of its own is asked itself, at 10 ms or so for each submit.
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
from workflows.errors import Earth2ServeError, InvalidParameters, ModelUnavailable, Problem
from workflows.execution import Stage

REMEMBERED_S = 1.0
"""How long a description counts as fresh: a class that is replaced may describe itself anew."""

Validate = Callable[[Mapping[str, Any]], Awaitable[list[Problem]]]


class WorkflowUnavailable(Earth2ServeError):
    """A workflow of which nothing is known yet, or that does not answer."""


class CustomWorkflows:
    """The callable workflows of users' own.

    Parameters
    ----------
    store : ExecutionStore
    formats : mapping of str to str
        Their names, and the format of results where the class does not take it.
    validators : mapping of str to callable
        Has each class check parameters by its own code.
    validation_limit_s : float
        What that may take, in seconds.
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
        self._known: dict[str, tuple[CustomWorkflow, dict[str, Any]]] = {}
        self._looked_at: dict[str, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._formats

    def look_up(self, name: str) -> CustomWorkflow:
        """Give a workflow as it describes itself now; reads the store now and then.

        Raises
        ------
        WorkflowUnavailable
            If its class was never imported.
        """
        known = self._known.get(name)
        now = time.monotonic()
        if known is not None and now - self._looked_at[name] < REMEMBERED_S:
            return known[0]
        found = self._store.description(name)
        if found is None:
            raise WorkflowUnavailable(
                f"workflow {name} is not ready: its class is not imported yet; /readiness says why"
            )
        self._looked_at[name] = now
        if known is None or known[1] != found:
            described = WorkflowDescription.model_validate(found)
            known = CustomWorkflow(name, described, self._formats[name]), found
            self._known[name] = known
        return known[0]

    async def check(self, workflow: CustomWorkflow, values: Mapping[str, Any]) -> None:
        """Have the class check parameters, if it has code of its own for that.

        Raises
        ------
        InvalidParameters
            With what the class found.
        WorkflowUnavailable
            If it does not answer.
        """
        if not workflow.own_validation:
            return
        name, limit_s = workflow.name, self._validation_limit_s
        try:
            problems = await asyncio.wait_for(self._validators[name](values), limit_s)
        except TimeoutError:
            raise WorkflowUnavailable(
                f"workflow {name} has not checked the parameters within {limit_s:g} s"
            ) from None
        except Exception as error:
            # Ray has its own classes for what a replica raises, and for its death.
            failure = as_stage_failure(Stage.INFERENCE, error)
            if not isinstance(failure, ModelUnavailable | TransientFailure):
                raise
            raise WorkflowUnavailable(
                f"workflow {name} cannot check the parameters now: {failure}"
            ) from None
        if problems:
            raise InvalidParameters(problems)
