"""The manifest: what an execution delivers, and its location.

One model for the store's table of manifests, for messages between deployments and for the HTTP
response. Keys are those of Earth2Studio's serve module, as far as it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from workflows.dataset import Provenance
from workflows.delivery import Container

# Names of the files of a result.
ZARR, NETCDF = "results.zarr", "results.nc"
"""The dataset, in either format."""
PREVIEW = "preview.png"
"""Map of the first variable: first member, last time."""
METADATA = "metadata.json"
"""What was computed, and with what."""
CHECKSUMS = "checksums.sha256"
"""Written last: a result that has it is complete."""

# With an offset, as in every other response; pydantic would write "Z".
_Time = Annotated[AwareDatetime, PlainSerializer(datetime.isoformat, when_used="json")]


class OutputFile(BaseModel):
    """One delivered file."""

    model_config = ConfigDict(frozen=True)

    path: str
    """``{execution_id}/{key}``, where Earth2Studio's clients expect it."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Hexadecimal."""


class Totals(BaseModel):
    """All delivered files together, listed or not."""

    model_config = ConfigDict(frozen=True)

    files: int
    bytes: int
    listed: int
    """Number of them in `Manifest.output_files`."""
    truncated: bool
    """Whether `Manifest.output_files` is incomplete."""


class UploadTotals(BaseModel):
    """What was copied into a Blob container."""

    model_config = ConfigDict(frozen=True)

    files: int
    bytes: int


class ResultsSummary(BaseModel):
    """Summary of a manifest, for the record of its execution: manifests list thousands of files."""

    model_config = ConfigDict(frozen=True)

    output_files: int
    """Number of listed files."""
    total_bytes: int
    """Size of the listed files."""
    storage_type: str
    is_uploaded: bool
    """Whether they were copied into a container."""


class CustomProvenance(BaseModel):
    """Where the results of a user's workflow class come from."""

    model_config = ConfigDict(frozen=True)

    workflow: str
    """``module:Class``."""
    software: Mapping[str, str] = {}
    """Versions, by package."""


class Manifest(BaseModel):
    """What an execution delivers.

    Notes
    -----
    Serialized, it has only the keys that were set: a manifest grows with its delivery, and clients
    test for a key such as ``blob_url``. Unknown keys of another release's rows are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    request_id: str | None = None
    workflow_name: str | None = None
    status: str | None = None
    """``completed``, or ``failed`` if less than required was computed."""
    created_at: _Time | None = None
    completion_time: _Time | None = None
    execution_time_seconds: float | None = None
    parameters: dict[str, Any] | None = None

    output_files: tuple[OutputFile, ...]
    """All delivered files, or the most important ones if there are very many."""
    totals: Totals | None = None
    storage_type: str = "server"
    """Always ``server``, which also has the uploaded files: Earth2Studio's client has no other type
    that fits."""
    provenance: Provenance | CustomProvenance | None = None
    assets: Mapping[str, tuple[int, str | None]] | None = None
    """Size and SHA-256 of what a STAC item refers to, by key below the result's folder."""
    warnings: tuple[str, ...] | None = None
    """Data of a user's workflow class that are not delivered, or hold no values."""
    coverage: Mapping[str, float] | None = None
    """How much of each variable a user's workflow class has written, 0 to 1."""
    device: str | None = None
    """``cuda`` or ``cpu``, where a user's workflow class ran."""

    uploaded: UploadTotals | None = None
    remote_path: str | None = None
    """``azure://{container}/{path}``."""
    azure_account_name: str | None = None
    blob_folder_url: str | None = None
    blob_url: str | None = None
    """URL of the dataset, a file or the folder of a Zarr store; None if there is none."""

    geo_catalog_url: str | None = None
    geocatalog_collection_id: str | None = None
    geocatalog_stac_feature_id: str | None = None

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {
            key: value
            for key, value in values.items()
            if value is not None or key in self.model_fields_set
        }

    @property
    def bytes(self) -> int:
        """Size of all delivered files."""
        if self.totals is not None:
            return self.totals.bytes
        return sum(file.size for file in self.output_files)

    def summary(self) -> ResultsSummary:
        """Return the summary of this manifest."""
        return summarize(self.model_dump())

    def in_container(self, container: Container, folder: str) -> Manifest:
        """Return this manifest with the location of the files in Blob Storage.

        `folder` is that of the result, below the container's prefix.
        """
        url = f"{container.url}/{folder}"
        dataset = self._dataset()
        return self.model_copy(
            update={
                "remote_path": "/".join(
                    filter(None, (f"azure://{container.name}", container.prefix, folder))
                ),
                "azure_account_name": container.account,
                "blob_folder_url": url,
                "blob_url": dataset and f"{url}/{dataset}",
            }
        )

    def _dataset(self) -> str | None:
        """Return the key of the dataset below the result's folder, if there is one."""
        keys = [file.path.partition("/")[2] for file in self.output_files]
        stores = [key.partition(".zarr/")[0] + ".zarr" for key in keys if ".zarr/" in key]
        files = [key for key in keys if key.endswith(".nc")]
        return next(iter((*stores, *files)), None)


def summarize(manifest: Mapping[str, Any]) -> ResultsSummary:
    """Return the summary of a serialized manifest."""
    files = manifest["output_files"]
    return ResultsSummary(
        output_files=len(files),
        total_bytes=sum(file["size"] for file in files),
        storage_type=manifest.get("storage_type", "server"),
        is_uploaded=manifest.get("uploaded") is not None,
    )
