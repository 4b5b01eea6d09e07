"""The section ``results``: how long they stay, and how much of the disk they may take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from serve_app.settings.section import Amount, Section

_DAY_S = 86_400


class ResultsSettings(Section):
    """How long results stay, and how much of the disk they may take."""

    keep_days: Amount | None = Field(
        default=None,
        description="Days after an execution's end at which its results expire and are removed; "
        "null keeps them until they are purged. What was delivered to Azure stays.",
    )
    keep_record_days: Amount | None = Field(
        default=30.0,
        description="Days after that at which the record of the expired execution goes, too; null "
        "keeps it.",
    )
    keep_failed_hours: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] = Field(
        default=24.0,
        description="Hours for which ensemble members of a failed execution stay that are whole: "
        "a retry within them computes only the others.",
    )
    quota_gb: Amount | None = Field(
        default=None,
        description="Disk that all results may take together, in 10^9 bytes; null is no bound.",
    )
    min_free_gb: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.25,
        description="Disk that stays free for the execution store and logs, in 10^9 bytes.",
    )

    @property
    def keep_s(self) -> float | None:
        """How long results stay, seconds."""
        return None if self.keep_days is None else self.keep_days * _DAY_S

    @property
    def keep_record_s(self) -> float | None:
        """How long the record of an expired execution stays, seconds."""
        return None if self.keep_record_days is None else self.keep_record_days * _DAY_S

    @property
    def keep_failed_s(self) -> float:
        """How long whole members of a failed execution stay, seconds."""
        return self.keep_failed_hours * 3600

    @property
    def quota_bytes(self) -> int | None:
        """Disk that all results may take together, bytes."""
        return None if self.quota_gb is None else max(int(self.quota_gb * 1e9), 1)
