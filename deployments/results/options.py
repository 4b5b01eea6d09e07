"""Options that say where results are stored."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from deployments.azure.options import ContainerOptions


class BlobResultsOptions(ContainerOptions):
    """The container of all results, and where their files wait for upload."""

    scratch_dir: Path
    """Local folder that only holds files until they are uploaded."""


class StorageOptions(BaseModel):
    """Where results and working files are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    results_dir: Path
    """Folder of the results, which every replica sees; not used with a container."""
    work_dir: Path
    """Folder of working files, which every replica sees. A container holds the working records,
    too, and only files of one node remain here."""
    blob: BlobResultsOptions | None = None
    """The container of the results; None if they are stored in a folder."""

    @field_validator("results_dir")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"must be an absolute path, not {value}")
        return value
