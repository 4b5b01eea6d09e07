"""The section ``workflows``: which workflows can be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from deployments.custom_workflow.options import CustomWorkflowConfig
from deployments.runtime.option_types import Gpus, Replicas
from serve_app.settings.class_names import declared_name
from serve_app.settings.section import Section
from workflows import WORKFLOWS
from workflows.base import OutputFormat
from workflows.custom import check_name

CUSTOM_DEPLOYMENT = "CustomWorkflow-"
"""Prefix of the names of the deployments that run custom workflows."""
RESERVED_NAMES = {
    "packager",
    "initial_conditions",
    "blob_uploader",
    "geocatalog",
    *(name for workflow in WORKFLOWS.values() for name in workflow.models),
    *(name for workflow in WORKFLOWS.values() for name in workflow.data_sources),
}
"""Names by which the Conductor calls deployments; no workflow can have one of them."""


class CustomWorkflowSettings(CustomWorkflowConfig, Section):
    """A user's workflow class and the replicas that run it."""

    name: Annotated[str, AfterValidator(check_name)] | None = Field(
        default=None, description="Name of the workflow. Null takes the name of the class."
    )
    replicas: Replicas = Field(
        default=1, description="Replicas; each runs one execution at a time."
    )
    num_gpus: Gpus = Field(
        default=1.0, description="GPUs per replica; 0 runs the class on the CPU."
    )
    output_format: OutputFormat = Field(
        default="zarr",
        description="Format of the results if the class has no parameter output_format.",
    )

    @property
    def resolved_name(self) -> str:
        """Name of the workflow: configured, declared in the source, or the name of the class."""
        attribute = self.path.partition(":")[2]
        return self.name or declared_name(self.path) or attribute.rpartition(".")[2]

    @property
    def deployment(self) -> str:
        """Name of its deployment."""
        return f"{CUSTOM_DEPLOYMENT}{self.resolved_name}"


def _known_workflows(custom: Sequence[CustomWorkflowSettings]) -> tuple[str, ...]:
    return (*WORKFLOWS, *(workflow.resolved_name for workflow in custom))


def _known_workflow(name: str, info: ValidationInfo) -> str:
    if "custom" not in info.data:  # invalid, so the names are not known
        return name
    known = _known_workflows(info.data["custom"])
    if name not in known:
        raise ValueError(f"unknown workflow {name!r}; known are {', '.join(known)}")
    return name


WorkflowName = Annotated[str, AfterValidator(_known_workflow)]


class WorkflowSettings(Section):
    """Which workflows can be called."""

    custom: tuple[CustomWorkflowSettings, ...] = Field(
        default=(), description="Workflow classes of your own, see docs/custom-workflows.md."
    )
    exposed: tuple[WorkflowName, ...] = Field(
        default=(),
        description="Workflows that are listed and can be called. Empty means all. The environment "
        "variable EXPOSED_WORKFLOWS (comma-separated) overrides it.",
    )
    warmup: tuple[WorkflowName, ...] = Field(
        default=(), description="Workflows that can be called but are not listed."
    )

    @field_validator("custom")
    @classmethod
    def _names_are_unique(
        cls, value: tuple[CustomWorkflowSettings, ...]
    ) -> tuple[CustomWorkflowSettings, ...]:
        names = set(WORKFLOWS)
        for workflow in value:
            name = workflow.resolved_name
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"{workflow.path}: {error}; set another `name`") from None
            if name in RESERVED_NAMES:
                raise ValueError(
                    f"{workflow.path}: {name!r} is a part of the server; set another `name`"
                )
            if name in names:
                raise ValueError(
                    f"{workflow.path}: a workflow {name!r} exists already; set another `name`"
                )
            names.add(name)
        return value

    def known(self) -> tuple[str, ...]:
        """Return the names of all workflows, the built-in ones first."""
        return _known_workflows(self.custom)
