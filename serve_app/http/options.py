"""Options of the Ingress deployment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deployments.results.options import StorageOptions
from serve_app.settings.results import ResultsSettings
from serve_app.settings.serving import AuthSettings, CorsSettings, LimitSettings, QueueSettings
from workflows.base import OutputFormat
from workflows.delivery import DeliveryRules
from workflows.grids import Grid, LambertGrid


class IngressOptions(BaseModel):
    """Options of an ingress replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store_url: str = Field(repr=False)
    """May contain a password, so it is kept out of logs."""
    storage: StorageOptions
    exposed: tuple[str, ...]
    """Workflows that are listed and can be called."""
    warmup: tuple[str, ...] = ()
    """Workflows that can be called but are not listed."""
    custom: dict[str, OutputFormat] = {}
    """The custom workflows among them, with the result format of classes that do not choose one."""
    grid: Grid = Grid()
    """Grid of the global model."""
    regional_grid: LambertGrid = LambertGrid()
    queue: QueueSettings = QueueSettings()
    limits: LimitSettings = LimitSettings()
    results: ResultsSettings = ResultsSettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    delivery: DeliveryRules = DeliveryRules()
    """Deliveries that a request may ask for."""
    signed_url_s: float | None = None
    """Validity of signed links to blobs, seconds; None creates no links."""
    validation_limit_s: float = Field(default=10.0, gt=0)
    """Time limit of a custom workflow's own validation, seconds."""
    components: dict[str, tuple[str, ...]] = {}
    """Models and data sources that each workflow needs to be ready."""

    @property
    def callable(self) -> tuple[str, ...]:
        """Names of all workflows that can be called."""
        return (*self.exposed, *self.warmup)
