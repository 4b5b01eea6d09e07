"""Workflows that are known only once a replica has described its model or class."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from deployments.store.executions import ExecutionStore
from workflows.base import OutputFormat, Workflow
from workflows.custom import CustomWorkflow, WorkflowDescription
from workflows.errors import WorkflowUnavailable
from workflows.forecast import ForecastDeclaration, ForecastWorkflow
from workflows.model_description import ModelDescription

CACHE_S = 1.0
"""Seconds for which a description is cached; a model or class that was replaced has a new one."""


@dataclass(frozen=True)
class Undescribed:
    """A workflow without the description that it needs."""

    component: str
    """Whose description it needs."""
    build: Callable[[dict[str, Any]], Workflow]
    """Returns the workflow with a stored description."""
    reason: str
    """Why it is unavailable until then."""
    description: str = ""
    """What is said of it until then."""


def declared_forecast(declaration: ForecastDeclaration) -> Undescribed:
    """Return a forecast whose model has yet to describe itself."""
    return Undescribed(
        declaration.model,
        lambda found: ForecastWorkflow(declaration, ModelDescription.model_validate(found)),
        f"is not ready: its model {declaration.model} was never loaded; /readiness says why",
        declaration.description,
    )


def custom_workflow(name: str, output_format: OutputFormat) -> Undescribed:
    """Return a user's workflow whose class has yet to be imported.

    Parameters
    ----------
    output_format : {'zarr', 'netcdf4'}
        Format of the results if the class has no parameter for it.
    """
    return Undescribed(
        name,
        lambda found: CustomWorkflow(
            name, WorkflowDescription.model_validate(found), output_format
        ),
        "is not ready: its class is not imported yet; /readiness says why",
    )


class DescribedWorkflows:
    """Workflows by their current descriptions in the execution store.

    Models and classes are never imported here.
    """

    def __init__(self, store: ExecutionStore, workflows: Mapping[str, Undescribed]) -> None:
        self._store = store
        self._workflows = workflows
        self._cached: dict[str, tuple[Workflow, dict[str, Any]]] = {}
        self._read_at: dict[str, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._workflows

    def describe(self, name: str) -> str:
        """Return what is said of a workflow before it is described."""
        return self._workflows[name].description

    def look_up(self, name: str) -> Workflow:
        """Return a workflow by its current description, which is cached for a second.

        Raises
        ------
        WorkflowUnavailable
            If there never was a description.
        """
        cached = self._cached.get(name)
        now = time.monotonic()
        if cached is not None and now - self._read_at[name] < CACHE_S:
            return cached[0]
        undescribed = self._workflows[name]
        found = self._store.description(undescribed.component)
        if found is None:
            raise WorkflowUnavailable(name, undescribed.reason)
        self._read_at[name] = now
        if cached is None or cached[1] != found:
            try:
                cached = undescribed.build(found), found
            except ValidationError:
                # Of another component that had this name, or of another release.
                raise WorkflowUnavailable(name, undescribed.reason) from None
            self._cached[name] = cached
        return cached[0]
