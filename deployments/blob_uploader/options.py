"""Options of the BlobUploader deployment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deployments.azure.options import AzureOptions
from deployments.blob_uploader.limits import BlobLimits
from workflows.delivery import Container


class BlobUploaderOptions(BaseModel):
    """Identity, destinations and limits of uploads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    azure: AzureOptions = AzureOptions()
    limits: BlobLimits = BlobLimits()
    allowed: tuple[Container, ...] | None = None
    """Containers that results may go to; None for any. A plan may be older than the list."""
    ahead: bool = True
    """Whether chunks are uploaded while others are still computed."""
    time_limit_s: float = Field(default=6 * 3600.0, gt=0)
    """Limit of one call of `upload`; the next call resumes it."""
    report_every_s: float = Field(default=0.5, gt=0)
    """Shortest time between two reports of progress."""
