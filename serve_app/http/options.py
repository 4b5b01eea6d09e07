"""Options of the Ingress deployment."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from deployments.results.options import StorageOptions
from deployments.runtime.option_types import Count, FilePath, Gigabytes
from workflows.base import OutputFormat
from workflows.delivery import DeliveryRules
from workflows.forecast import ForecastDeclaration
from workflows.grids import Grid, LambertGrid

_MB, _GB = 10**6, 10**9


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueueOptions(_Options):
    """How many executions may wait."""

    max_size: Count = Field(
        default=20,
        description="Executions that may wait. Further requests are refused with status 429.",
    )


class LimitOptions(_Options):
    """Limits of one request."""

    max_output_gb: Gigabytes = Field(
        default=100.0, description="Maximum size of one result, uncompressed, in 10^9 bytes."
    )
    max_body_mb: Annotated[float, Strict(), Field(ge=0.01, le=100, allow_inf_nan=False)] = Field(
        default=1.0, description="Maximum size of a request body, in 10^6 bytes."
    )

    @property
    def max_output_bytes(self) -> int:
        """Maximum size of one result, uncompressed, bytes."""
        return int(self.max_output_gb * _GB)

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request body, bytes."""
        return int(self.max_body_mb * _MB)


class DiskOptions(_Options):
    """How much of the disk results may use."""

    quota_gb: Gigabytes | None = Field(
        default=None,
        description="Limit on all results together, in 10^9 bytes. Null is no limit.",
    )
    min_free_gb: Annotated[float, Strict(), Field(ge=0, le=1e9, allow_inf_nan=False)] = Field(
        default=0.25,
        description="Disk space reserved for the execution store and logs, in 10^9 bytes.",
    )

    @property
    def quota_bytes(self) -> int | None:
        """Limit on all results together, bytes."""
        return None if self.quota_gb is None else max(int(self.quota_gb * _GB), 1)

    @property
    def min_free_bytes(self) -> int:
        """Disk space reserved for the execution store and logs, bytes."""
        return int(self.min_free_gb * _GB)


def _host(value: str) -> str:
    if value != "*" and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", value):
        raise ValueError('must be a name such as "weather.example.org", without a port, or "*"')
    return value


class AuthOptions(_Options):
    """Authentication."""

    tokens_file: FilePath | None = Field(
        default=None,
        description="File of bearer tokens, with one line name:sha256 per caller, as printed by "
        "`python -m serve_app.auth NAME`. Null requires none.",
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        default=(),
        description="Public names by which a server without tokens may be called, besides IP "
        'addresses and private names, or "*" for any.',
    )


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^\s/?#@]+", value):
        raise ValueError('must be an origin such as "https://example.org", or "*"')
    return value


class CorsOptions(_Options):
    """Web pages that may call the server from a browser."""

    allow_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(),
        description='Origins of web pages that may call, such as "https://example.org", or "*". '
        "Empty allows none.",
    )


class IngressOptions(_Options):
    """Options of an ingress replica."""

    store_url: str = Field(repr=False)
    """May contain a password, so it is kept out of logs."""
    storage: StorageOptions
    exposed: tuple[str, ...]
    """Workflows that are listed and can be called."""
    warmup: tuple[str, ...] = ()
    """Workflows that can be called but are not listed."""
    custom: dict[str, OutputFormat] = {}
    """The custom workflows among them, with the result format of classes that do not choose one."""
    forecasts: tuple[ForecastDeclaration, ...] = ()
    """The declared forecasts among them."""
    grid: Grid = Grid()
    """Grid of the global model."""
    regional_grid: LambertGrid = LambertGrid()
    queue: QueueOptions = QueueOptions()
    limits: LimitOptions = LimitOptions()
    results: DiskOptions = DiskOptions()
    auth: AuthOptions = AuthOptions()
    cors: CorsOptions = CorsOptions()
    delivery: DeliveryRules = DeliveryRules()
    """Deliveries that a request may ask for."""
    signed_url_s: float | None = None
    """Validity of signed links to blobs, seconds; None creates no links."""
    validation_limit_s: float = Field(default=30.0, gt=0)
    """Time limit of the check by a custom workflow's class, seconds. A replica that has just
    started imports its class first, which can take 10 s."""
    components: dict[str, tuple[str, ...]] = {}
    """Models and data sources that each workflow needs to be ready."""

    @property
    def callable(self) -> tuple[str, ...]:
        """Names of all workflows that can be called."""
        return (*self.exposed, *self.warmup)
