"""The sections under ``args``: one model each, and what their values must look like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.settings.class_names import declared_name
from serve_app.settings.section import SYNTHETIC, Amount, Count, ImportPath, Loader, Section
from workflows import WORKFLOWS, Grid
from workflows.base import OutputFormat
from workflows.custom import check_name
from workflows.grids import LambertGrid

CUSTOM = "CustomWorkflow-"
"""With this begin the names of the deployments that serve workflows of users' own."""
OURS = {
    "packager",
    "initial_conditions",
    "blob_uploader",
    "geocatalog",
    *(name for workflow in WORKFLOWS.values() for name in workflow.models),
    *(name for workflow in WORKFLOWS.values() for name in workflow.data_sources),
}
"""Names by which the Conductor calls what is ours; no workflow can have one of them."""


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^\s/?#@]+", value):
        raise ValueError('give an origin such as "https://example.org", or "*"')
    return value


class CustomWorkflowSettings(Section):
    """A user's own workflow class and the replicas that run it."""

    model_config = ConfigDict(populate_by_name=True)

    path: ImportPath = Field(
        alias="class",
        description='"module:Class": a class with the interface of Earth2Studio\'s Earth2Workflow.',
    )
    name: Annotated[str, AfterValidator(check_name)] | None = Field(
        default=None, description="Name of the workflow; null is the one that the class has."
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the class's constructor."
    )
    replicas: Count = Field(default=1, description="Replicas; each runs one execution at a time.")
    num_gpus: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] = Field(
        default=1.0, description="GPUs of a replica; 0 runs it on the CPU."
    )
    output_format: OutputFormat = Field(
        default="zarr",
        description="Format of results if the class has no parameter output_format.",
    )
    window_mb: Count = Field(
        default=256,
        description="Megabytes that may be computed but unwritten: memory for speed.",
    )
    cancel_grace_s: Amount = Field(
        default=15.0,
        description="Seconds that a run gets to stop after a cancel; its process is ended then.",
    )

    @property
    def resolved_name(self) -> str:
        """Name of the workflow: given, or read in the class's source, or the class's own."""
        attribute = self.path.partition(":")[2]
        return self.name or declared_name(self.path) or attribute.rpartition(".")[2]

    @property
    def deployment(self) -> str:
        """Name of its deployment."""
        return f"{CUSTOM}{self.resolved_name}"


def _known_workflows(custom: Sequence[CustomWorkflowSettings]) -> tuple[str, ...]:
    return (*WORKFLOWS, *(each.resolved_name for each in custom))


def _known_workflow(name: str, info: ValidationInfo) -> str:
    if "custom" not in info.data:  # wrong itself, so nobody knows
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
        description="Workflows that are listed and can be called; empty means all. "
        "EXPOSED_WORKFLOWS in the server's environment (comma separated) overrides it.",
    )
    warmup: tuple[WorkflowName, ...] = Field(
        default=(), description="Workflows that can be called but are not listed."
    )

    @field_validator("custom")
    @classmethod
    def _names_differ(
        cls, value: tuple[CustomWorkflowSettings, ...]
    ) -> tuple[CustomWorkflowSettings, ...]:
        taken = set(WORKFLOWS)
        for each in value:
            name = each.resolved_name
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"{each.path}: {error}; set another `name`") from None
            if name in OURS:
                raise ValueError(
                    f"{each.path}: {name!r} is a part of the server; set another `name`"
                )
            if name in taken:
                raise ValueError(
                    f"{each.path}: there is a workflow {name!r} already; set another `name`"
                )
            taken.add(name)
        return value

    def known(self) -> tuple[str, ...]:
        """Names of all workflows that there are, ours first."""
        return _known_workflows(self.custom)


class ModelSettings(Section):
    """A model and the replicas that run it."""

    loader: Loader = Field(
        default=SYNTHETIC,
        description='"synthetic", a weight-free stand-in, or "module:callable": what loads the '
        "model, called with the device and `options`.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments for the loader, such as package: /weights/fcn3.",
    )
    replicas: Count = Field(
        default=1,
        description="Replicas; ensemble members spread over them. With Serve's autoscaling, as "
        "many as its max_replicas.",
    )
    num_gpus: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="GPUs of a replica; null is 0 for the synthetic model and 1 otherwise.",
    )
    grid: Grid = Field(default=Grid(), description="Grid of the model.")

    @property
    def resolved_num_gpus(self) -> float:
        """GPUs of a replica."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 0.0 if self.loader == SYNTHETIC else 1.0


class FCN3Settings(ModelSettings):
    """FCN3 and the replicas that run it."""

    checkpoint_steps: Count | None = Field(
        default=60,
        description="Steps after which the state of a member is kept, so that one that is "
        "interrupted goes on from there; null begins it anew.",
    )


class StormScopeSettings(ModelSettings):
    """StormScope and the replicas that run it."""

    grid: LambertGrid = Field(  # type: ignore[assignment]
        default=LambertGrid(), description="Grid of the model, on HRRR's map."
    )


class InterpolationSettings(Section):
    """What makes the steps of FCN3 hourly; it runs in FCN3's replicas, beside it."""

    loader: Loader = Field(
        default=SYNTHETIC,
        description='"synthetic", or "module:callable": what loads it, called with the device, '
        "FCN3 as `px_model` and `options`.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the loader."
    )


class ModelsSettings(Section):
    """The models, by name."""

    fcn3: FCN3Settings = Field(default=FCN3Settings(), description="FourCastNet 3.")
    interpolation: InterpolationSettings = Field(
        default=InterpolationSettings(),
        description="Interpolation of FCN3 to hours, for what it conditions.",
    )
    stormscope: StormScopeSettings = Field(
        default=StormScopeSettings(), description="StormScope-GOES."
    )
    in_turn: Annotated[bool, Strict()] = Field(
        default=False,
        description="True where FCN3 and StormScope share one GPU that cannot hold both: one "
        "computes while the other waits in the host's memory.",
    )

    @property
    def replicas(self) -> dict[str, int]:
        """Replicas, by model."""
        return {"fcn3": self.fcn3.replicas, "stormscope": self.stormscope.replicas}

    @model_validator(mode="after")
    def _fit_one_gpu(self) -> ModelsSettings:
        together = self.fcn3.resolved_num_gpus + self.stormscope.resolved_num_gpus
        if self.in_turn and together > 1:
            raise ValueError(
                "with in_turn fcn3 and stormscope share one GPU, but their num_gpus are "
                f"{together:g} together; set num_gpus: 0.5 for each"
            )
        return self


class DataSourceSettings(Section):
    """Where initial conditions come from."""

    loader: Loader = Field(
        default=SYNTHETIC,
        description='"synthetic", or "module:callable": what opens the data source, called with '
        "`options`.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the loader."
    )
    timeout_s: Amount = Field(
        default=900.0, description="Seconds that fetching initial conditions may take."
    )


class DataSourcesSettings(Section):
    """The data sources, by name."""

    ifs: DataSourceSettings = Field(default=DataSourceSettings(), description="ECMWF IFS analyses.")
    goes: DataSourceSettings = Field(
        default=DataSourceSettings(),
        description="Images of GOES-East; the loader is also given `satellite`, goes16 or goes19.",
    )


class QueueSettings(Section):
    """How much may wait and run."""

    max_size: Count = Field(
        default=20, description="Executions that may wait; one more is refused with status 429."
    )
    max_running: Count | None = Field(
        default=None,
        description="Executions of a workflow that run at once; null is its model's replicas plus "
        "3, and the replicas of a workflow of your own.",
    )


class LimitSettings(Section):
    """What one request may ask for."""

    max_output_gb: Amount = Field(
        default=100.0, description="Size of an execution's result, uncompressed, in 10^9 bytes."
    )
    max_body_mb: Annotated[Amount, Field(ge=0.01)] = Field(
        default=1.0, description="Size of a request's body, in 10^6 bytes."
    )


class AuthSettings(Section):
    """Who may call."""

    tokens_file: Path | None = Field(
        default=None,
        description="Bearer tokens, one line name:sha256 each, as `python -m serve_app.auth NAME` "
        "gives them; null asks for none.",
    )


class CorsSettings(Section):
    """Which web pages may call from a browser."""

    allow_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(), description='Origins such as "https://example.org"; empty allows no other page.'
    )


class IngressSettings(Section):
    """The HTTP front."""

    replicas: Count = Field(default=1, description="Replicas that answer HTTP requests.")


class PackagerSettings(Section):
    """Writing results."""

    replicas: Count = Field(default=2, description="Replicas that write results.")
    window_steps: Count = Field(
        default=4,
        description="Steps of a member that may be computed but unwritten: memory for speed.",
    )
