"""Arguments and results of calls to BlobUploader."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from workflows.delivery import Container

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
"""One component of a path."""


class UploadJob(BaseModel):
    """A result and its destination."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workflow: str = Field(pattern=_NAME)
    execution_id: str = Field(pattern=_NAME)
    container: Container

    @property
    def folder(self) -> str:
        """Folder of the result, below the results folder here and below the container there."""
        return f"{self.workflow}/{self.execution_id}"


class UploadProgress(BaseModel):
    """How much of a result is in the container, whichever attempt uploaded it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    total_bytes: int
    files: int
    total_files: int


class Uploaded(BaseModel):
    """A result that is complete in its container."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    """URL of its folder."""
    container: Container
    files: int
    bytes: int
    uploaded_files: int
    """Files that this call uploaded; the others were there already."""
    uploaded_bytes: int
