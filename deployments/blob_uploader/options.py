"""Options of the BlobUploader deployment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deployments.azure.options import AzureOptions
from deployments.blob_uploader.limits import BlobLimits
from deployments.runtime.option_types import Flag, Seconds
from workflows.delivery import Container


class BlobUploaderConfig(BaseModel):
    """What an operator configures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_limit_s: Seconds = Field(
        default=6 * 3600.0,
        description="Time limit of one attempt at an upload, seconds. The next attempt resumes it.",
    )
    upload_ahead: Flag = Field(
        default=True,
        description="Whether the chunks of a Zarr store are uploaded while later steps are still "
        "computed.",
    )


class BlobUploaderOptions(BlobUploaderConfig):
    """Options of a BlobUploader replica."""

    azure: AzureOptions = AzureOptions()
    limits: BlobLimits = BlobLimits()
    allowed: tuple[Container, ...] | None = None
    """Containers that may be written; None for any. A plan may be older than this list."""
    report_every_s: float = Field(default=0.5, gt=0)
    """Minimum time between two reports of progress, seconds."""
