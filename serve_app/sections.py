"""The sections under ``args``: one model each, and what their values must look like."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from workflows import WORKFLOWS, Grid

SYNTHETIC = "synthetic"


def _known_workflow(name: str) -> str:
    if name not in WORKFLOWS:
        raise ValueError(f"unknown workflow {name!r}; known are {', '.join(WORKFLOWS)}")
    return name


def _loader(value: str) -> str:
    if value != SYNTHETIC and not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", value):
        raise ValueError(f'give "{SYNTHETIC}" or "module:callable", as in "my_package.models:load"')
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^\s/?#@]+", value):
        raise ValueError('give an origin such as "https://example.org", or "*"')
    return value


# Strict, because YAML has its own numbers and truth values: `true` is no count.
Count = Annotated[int, Strict(), Field(ge=1)]
Amount = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
WorkflowName = Annotated[str, AfterValidator(_known_workflow)]
Loader = Annotated[str, AfterValidator(_loader)]


class Section(BaseModel):
    """Base of all sections: an unknown name is an error, and errors never quote a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class WorkflowSettings(Section):
    """Which workflows can be called."""

    exposed: tuple[WorkflowName, ...] = Field(
        default=(),
        description="Workflows that are listed and can be called; empty means all. "
        "EXPOSED_WORKFLOWS in the server's environment (comma separated) overrides it.",
    )
    warmup: tuple[WorkflowName, ...] = Field(
        default=(), description="Workflows that can be called but are not listed."
    )


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
    replicas: Count = Field(default=1, description="Replicas; ensemble members spread over them.")
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


class ModelsSettings(Section):
    """The models, by name."""

    fcn3: ModelSettings = Field(default=ModelSettings(), description="FourCastNet 3.")


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


class QueueSettings(Section):
    """How much may wait and run."""

    max_size: Count = Field(
        default=20, description="Executions that may wait; one more is refused with status 429."
    )
    max_running: Count | None = Field(
        default=None,
        description="Executions that run at once; null is the replicas of the model plus 1.",
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
