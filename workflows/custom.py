"""A user's workflow class as the Ingress knows it: by its description.

The class itself is imported only in the replicas of its deployment, which report its name and the
schema of its parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from workflows.base import OutputFormat, Parameters, Workflow
from workflows.delivery import Delivery
from workflows.errors import InvalidParameters, Problem
from workflows.schema_model import parameters_from_schema

RESERVED_NAMES = frozenset({"workflows"})
"""``/v1/infer/workflows`` is the list of workflows."""

FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Return a valid segment of a URL's path; raise ValueError for any other name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:100]!r} cannot name a workflow: up to 100 letters, digits, '_', '.' and '-' "
            "are allowed"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"a workflow cannot be called {name!r}: that is a route of its own")
    return name


class WorkflowDescription(BaseModel):
    """Description of a class, reported by the replica that imported it."""

    # Another version of this server may have stored further fields.
    model_config = ConfigDict(frozen=True, extra="ignore")

    description: str
    parameters_schema: dict[str, Any]
    """JSON schema of the parameters, from the class's own model or ``__call__``'s signature."""


class CustomPlan(BaseModel):
    """The work of one execution of a user's workflow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["custom"] = "custom"
    workflow: str
    parameters: dict[str, Any]
    """Only those of the request, without defaults."""
    output_format: OutputFormat
    delivery: Delivery | None = None
    """Further destinations of the result."""


class CustomWorkflow(Workflow):
    """A workflow with the description of a user's class.

    Parameters
    ----------
    name : str
        Name in the settings, or else that of the class.
    output_format : {'zarr', 'netcdf4'}
        Format for classes without a parameter of that name.
    """

    models = ()
    data_sources = ()

    def __init__(
        self, name: str, described: WorkflowDescription, output_format: OutputFormat
    ) -> None:
        self.name = name
        self.description = described.description
        self.parameters = parameters_from_schema(described.parameters_schema)
        self._schema = described.parameters_schema
        self._output_format = output_format

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the parameters, as the class reports it."""
        return self._schema

    def plan(self, parameters: Parameters) -> CustomPlan:
        """Return the plan: the request's parameters and the format of the result.

        Raises InvalidParameters if the request names a format that does not exist.
        """
        # Without defaults: a class may have some that its own types refuse.
        given = parameters.model_dump(mode="json", exclude_unset=True)
        chosen = parameters.model_dump(mode="json").get("output_format")
        if chosen not in FORMATS and given.get("output_format") is not None:
            problem = Problem("parameters.output_format", "must be 'zarr' or 'netcdf4'")
            raise InvalidParameters([problem])
        return CustomPlan(
            workflow=self.name,
            parameters=given,
            output_format=chosen if chosen in FORMATS else self._output_format,
        )


def is_custom(plan: Mapping[str, Any]) -> bool:
    """Return whether a stored plan is that of a user's workflow."""
    return plan.get("kind") == "custom"
