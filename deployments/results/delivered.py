"""What a manifest says of a delivery, in the names of Earth2Studio's own server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.blob_uploader.messages import Uploaded, UploadJob
from deployments.geocatalog.messages import Registered
from workflows.delivery import Container, Delivery
from workflows.execution import Execution, Stage


def begun_upload(execution: Execution) -> UploadJob | None:
    """Give the upload of an execution that may have begun but has not ended; None if there is none.

    Chunks of a Zarr store are uploaded while others are still computed.
    """
    delivery = Delivery.model_validate(execution.plan.get("delivery") or {})
    # One that has expired has no results any more that would say what was uploaded.
    passed = execution.stage is not None and Stage.UPLOAD.is_before(execution.stage)
    if delivery.container is None or passed or "uploaded" in (execution.results or {}):
        return None
    return UploadJob(
        workflow=execution.workflow,
        execution_id=execution.execution_id,
        container=delivery.container,
    )


def of_upload(uploaded: Uploaded, results: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what was uploaded, and where it lies."""
    folder = uploaded.url.removeprefix(f"{uploaded.container.url}/")
    return {
        "uploaded": {"files": uploaded.files, "bytes": uploaded.bytes},
        **in_container(uploaded.container, folder, results),
    }


def in_container(container: Container, folder: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Tell where the files of a folder lie in Blob Storage.

    ``storage_type`` stays that of the server: files can be had from here as well, and the client
    of Earth2Studio knows no other that fits.
    """
    below = "/".join(filter(None, (container.prefix, folder)))
    url = f"{container.url}/{folder}"
    return {
        "remote_path": f"azure://{container.name}/{below}",
        "azure_account_name": container.account,
        "blob_folder_url": url,
        "blob_url": blob_url(url, results),
    }


def blob_url(folder: str, results: Mapping[str, Any]) -> str | None:
    """Give the URL of the dataset, a file or the folder of a Zarr store; None if there is none."""
    keys = [file["path"].partition("/")[2] for file in results["output_files"]]
    stores = [key.partition(".zarr/")[0] + ".zarr" for key in keys if ".zarr/" in key]
    files = [key for key in keys if key.endswith(".nc")]
    data = next(iter((*stores, *files)), None)
    return data and f"{folder}/{data}"


def of_registration(registered: Registered) -> dict[str, Any]:
    """Tell where the item is."""
    return {
        "geo_catalog_url": registered.geo_catalog_url,
        "geocatalog_collection_id": registered.collection_id,
        "geocatalog_stac_feature_id": registered.item_id,
    }
