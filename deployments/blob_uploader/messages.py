"""Arguments and results of calls to BlobUploader."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from workflows.delivery import Container, Delivery
from workflows.execution import Execution, Stage
from workflows.manifest import Manifest, UploadTotals

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

    @classmethod
    def unfinished(cls, execution: Execution) -> UploadJob | None:
        """Return the upload of an execution that may have begun but has not ended, if any.

        Chunks of a Zarr store are uploaded while others are still computed.
        """
        delivery = Delivery.model_validate(execution.plan.get("delivery") or {})
        # An expired execution no longer has results, which would say what was uploaded.
        passed = execution.stage is not None and Stage.UPLOAD.is_before(execution.stage)
        is_uploaded = execution.results is not None and execution.results.is_uploaded
        if delivery.container is None or passed or is_uploaded:
            return None
        return cls(
            workflow=execution.workflow,
            execution_id=execution.execution_id,
            container=delivery.container,
        )


class UploadProgress(BaseModel):
    """How much of a result is in the container, uploaded by any attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    total_bytes: int
    files: int
    total_files: int


class Uploaded(BaseModel):
    """A result that is complete in its container."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    container: Container
    files: int
    bytes: int
    uploaded_files: int
    """Files that this call uploaded; the others were there already."""
    uploaded_bytes: int

    def added_to(self, manifest: Manifest) -> Manifest:
        """Return a manifest with what was uploaded, and its location."""
        folder = self.url.removeprefix(f"{self.container.url}/")
        totals = UploadTotals(files=self.files, bytes=self.bytes)
        return manifest.in_container(self.container, folder).model_copy(update={"uploaded": totals})
