"""The section ``results``: how long results are kept, and how much of the disk they may use."""

from __future__ import annotations

from pydantic import Field

from deployments.conductor.options import RetentionOptions
from deployments.runtime.option_types import Days, Hours
from serve_app.http.options import DiskOptions
from serve_app.settings.section import Section

_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S


class ResultsSettings(DiskOptions, Section):
    """How long results are kept, and how much of the disk they may use."""

    keep_days: Days | None = Field(
        default=None,
        description="Days after the end of an execution until its results expire and are removed. "
        "Null keeps them until they are purged. Copies delivered to Azure are kept.",
    )
    keep_record_days: Days | None = Field(
        default=30.0,
        description="Further days until the record of an expired execution is removed. Null keeps "
        "the record.",
    )
    keep_failed_hours: Hours = Field(
        default=24.0,
        description="Hours for which the completed ensemble members of a failed execution are "
        "kept. A retry within this time computes only the others.",
    )

    @property
    def retention(self) -> RetentionOptions:
        """How long results are kept."""
        return RetentionOptions(
            keep_s=None if self.keep_days is None else self.keep_days * _DAY_S,
            keep_record_s=None if self.keep_record_days is None else self.keep_record_days * _DAY_S,
            keep_failed_s=self.keep_failed_hours * _HOUR_S,
        )
