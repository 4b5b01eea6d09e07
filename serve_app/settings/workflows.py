"""The section ``workflows``: which workflows can be called."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from deployments.custom_workflow.options import CustomWorkflowConfig
from deployments.runtime.option_types import Count, Gpus, Replicas
from serve_app.settings.class_names import declared_name
from serve_app.settings.section import PARTS_OF_THE_SERVER, OwnLoader, Section
from workflows import WORKFLOWS
from workflows.base import Component, OutputFormat
from workflows.custom import check_name
from workflows.forecast import ForecastDeclaration

CUSTOM_DEPLOYMENT = "CustomWorkflow-"
"""Prefix of the names of the deployments that run custom workflows."""
RESERVED_NAMES = PARTS_OF_THE_SERVER - {"results"}
"""Names by which the Conductor calls deployments; no workflow can have one of them."""


def _divides_a_day(value: int) -> int:
    if 24 % value:
        raise ValueError("must divide 24: 1, 2, 3, 4, 6, 8, 12 or 24")
    return value


CycleHours = Annotated[Count, Field(le=24), AfterValidator(_divides_a_day)]


class ComponentSettings(Section):
    """A perturbation or diagnostic of a forecast."""

    loader: OwnLoader = Field(
        description='"module:name" of a class of Earth2Studio, such as '
        "earth2studio.perturbation:SphericalGaussian, or of a function; called with `options`."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Its keyword arguments.")

    def component(self) -> Component:
        """Return it as plans keep it."""
        return Component(loader=self.loader, options=self.options)


class ForecastSettings(Section):
    """A forecast workflow."""

    description: str = Field(
        default="", max_length=1000, description="For the list of workflows. Empty names its parts."
    )
    model: str = Field(description="A model of args.models: fcn3 or one of your own.")
    data_sources: tuple[str, ...] = Field(
        min_length=1,
        description="Sources of args.data_sources that a request may choose from: ifs or your own. "
        "The first is the default.",
    )
    perturbation: ComponentSettings | None = Field(
        default=None,
        description="Perturbs the initial conditions of each member by its seed. Without one, a "
        "model that draws no random numbers has one member.",
    )
    diagnostics: tuple[ComponentSettings, ...] = Field(
        default=(),
        description="Computed by the model's replica after each step; their variables are added.",
    )
    cycle_hours: CycleHours | None = Field(
        default=None,
        description="Hours between initial conditions, from 00 UTC. Null is the step of the model, "
        "at most 6.",
    )
    max_steps: Annotated[Count, Field(le=10_000)] = Field(
        default=400, description="Most steps of a request."
    )
    max_members: Annotated[Count, Field(le=1000)] = Field(
        default=32, description="Most ensemble members of a request."
    )

    def declaration(self, name: str) -> ForecastDeclaration:
        """Return the workflow as the server declares it."""
        described = f"Forecast by {self.model} from {' or '.join(self.data_sources)}"
        return ForecastDeclaration(
            name=name,
            description=self.description or described,
            model=self.model,
            data_sources=self.data_sources,
            perturbation=None if self.perturbation is None else self.perturbation.component(),
            diagnostics=tuple(each.component() for each in self.diagnostics),
            cycle_hours=self.cycle_hours,
            max_steps=self.max_steps,
            max_members=self.max_members,
        )


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


def _known_workflows(
    forecasts: Iterable[str], custom: Sequence[CustomWorkflowSettings]
) -> tuple[str, ...]:
    return (*WORKFLOWS, *forecasts, *(workflow.resolved_name for workflow in custom))


def _known_workflow(name: str, info: ValidationInfo) -> str:
    if not {"forecasts", "custom"} <= info.data.keys():  # invalid, so the names are not known
        return name
    known = _known_workflows(info.data["forecasts"], info.data["custom"])
    if name not in known:
        raise ValueError(f"unknown workflow {name!r}; known are {', '.join(known)}")
    return name


WorkflowName = Annotated[str, AfterValidator(_known_workflow)]


def _forecast_name(value: str) -> str:
    if value in WORKFLOWS:
        raise ValueError(f"a workflow {value!r} exists already; choose another name")
    if value in RESERVED_NAMES:
        raise ValueError(f"{value!r} is a part of the server; choose another name")
    return check_name(value)


ForecastName = Annotated[str, AfterValidator(_forecast_name)]


class WorkflowSettings(Section):
    """Which workflows can be called."""

    forecasts: dict[ForecastName, ForecastSettings] = Field(
        default_factory=dict,
        description="Forecasts by models of your own, by name; see docs/models.md.",
    )
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
        cls, value: tuple[CustomWorkflowSettings, ...], info: ValidationInfo
    ) -> tuple[CustomWorkflowSettings, ...]:
        names = {*WORKFLOWS, *info.data.get("forecasts", ())}
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
        return _known_workflows(self.forecasts, self.custom)

    def check_parts(self, own_models: Collection[str], own_sources: Collection[str]) -> None:
        """Raise ValueError if a forecast needs what there is not, or names are not unique.

        Parameters
        ----------
        own_models, own_sources : collection of str
            Names of the operator's models and data sources.
        """
        models, sources = ("fcn3", *own_models), ("ifs", *own_sources)
        for name, forecast in self.forecasts.items():
            if forecast.model not in models:
                raise ValueError(
                    f"forecasts.{name}.model: unknown model {forecast.model!r}; there are "
                    f"{', '.join(models)}"
                )
            for source in forecast.data_sources:
                if source not in sources:
                    raise ValueError(
                        f"forecasts.{name}.data_sources: unknown data source {source!r}; there are "
                        f"{', '.join(sources)}"
                    )
        names = [*own_models, *own_sources, *self.known()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} names more than one model, data source or workflow")
