"""Options of the Ingress deployment."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deployments.azure.options import BlobResultsOptions
from workflows.base import OutputFormat
from workflows.delivery import DeliveryRules
from workflows.grids import Grid, LambertGrid


class IngressOptions(BaseModel):
    """What one ingress replica needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store_url: str = Field(repr=False)
    """May hold a password, so it is kept out of logs."""
    results_dir: Path
    """Folder of the results, unless they lie in a container."""
    blob_results: BlobResultsOptions | None = None
    """The container that they lie in."""
    exposed: tuple[str, ...]
    """Workflows that are listed and can be called."""
    warmup: tuple[str, ...] = ()
    """Workflows that can be called but are not listed."""
    custom: dict[str, OutputFormat] = {}
    """Workflows of users' own among them, with the format of results where a class has no say."""
    grid: Grid = Grid()
    """Grid of the global model."""
    regional_grid: LambertGrid = LambertGrid()
    max_queued: int = Field(20, ge=1)
    max_output_bytes: int = Field(gt=0)
    """A request whose estimated result is larger is refused."""
    quota_bytes: int | None = Field(None, gt=0)
    """What all results may take together; None is no bound."""
    min_free_bytes: int = Field(250 * 10**6, ge=0)
    """What stays free of the disk: the execution store and logs live on one too."""
    max_body_bytes: int = Field(2**20, ge=1)
    validation_limit_s: float = Field(default=10.0, gt=0)
    """What a class of a user's own may take to check parameters."""
    tokens_file: Path | None = None
    """Bearer tokens, see `serve_app.auth`; None asks for none."""
    allow_origins: tuple[str, ...] = ()
    """Origins of web pages that may call; none by default."""
    delivery: DeliveryRules = DeliveryRules()
    """Where results may go besides this server."""
    signed_url_s: float | None = None
    """How long a link to an execution's blobs is valid; None makes none."""
    components: dict[str, tuple[str, ...]] = {}
    """Workflow to the models and data sources whose readiness it needs."""

    @property
    def callable(self) -> tuple[str, ...]:
        """Names of all workflows that can be called."""
        return (*self.exposed, *self.warmup)

    @field_validator("results_dir", "tokens_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"an absolute path is needed, not {value}")
        return value
