"""A user's own workflow class, as the ingress knows it: by its description alone.

The class itself lives in the replicas of its deployment. They say what it is called and which
parameters it takes; nothing else of it, and nothing that it imports, comes here.
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
"""``/v1/infer/workflows`` lists the workflows."""

FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Refuse a name that cannot be one part of a path.

    Raises
    ------
    ValueError
        Saying what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:100]!r} cannot name a workflow: up to 100 letters, digits, '_', '.' and '-' "
            "are allowed"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"a workflow cannot be called {name!r}: that is a route of its own")
    return name


class WorkflowDescription(BaseModel):
    """What a replica says of the class that it has imported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    parameters_schema: dict[str, Any]
    """JSON schema of the parameters, from the signature of ``__call__``."""
    own_validation: bool
    """Whether the class checks parameters by code of its own, beyond that schema."""


class CustomPlan(BaseModel):
    """The work of one execution of a user's workflow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["custom"] = "custom"
    workflow: str
    parameters: dict[str, Any]
    """Those that the request gives."""
    output_format: OutputFormat
    delivery: Delivery | None = None
    """Where the result goes besides this server."""


class CustomWorkflow(Workflow):
    """A workflow made from the description of a user's class.

    Parameters
    ----------
    name : str
        As the settings or the class have it.
    described : WorkflowDescription
    output_format : {'zarr', 'netcdf4'}
        For classes that have no parameter of that name.
    """

    models = ()
    data_sources = ()

    def __init__(
        self, name: str, described: WorkflowDescription, output_format: OutputFormat
    ) -> None:
        self.name = name
        self.description = described.description
        self.own_validation = described.own_validation
        self.parameters = parameters_from_schema(described.parameters_schema)
        self._schema = described.parameters_schema
        self._output_format = output_format

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the parameters, as the class gave it."""
        return self._schema

    def plan(self, parameters: Parameters) -> CustomPlan:
        """Keep the parameters with what decides the format of the result.

        Raises
        ------
        InvalidParameters
            If the request names another format, which the class would be given in vain.
        """
        # What was left out stays so: a class may have defaults that its own types refuse.
        given = parameters.model_dump(mode="json", exclude_unset=True)
        chosen = parameters.model_dump(mode="json").get("output_format")
        if chosen not in FORMATS and given.get("output_format") is not None:
            problem = Problem("parameters.output_format", "'zarr' or 'netcdf4' is needed")
            raise InvalidParameters([problem])
        return CustomPlan(
            workflow=self.name,
            parameters=given,
            output_format=chosen if chosen in FORMATS else self._output_format,
        )


def is_custom(plan: Mapping[str, Any]) -> bool:
    """Say whether a stored plan is that of a user's workflow."""
    return plan.get("kind") == "custom"
