"""Results to upload, and uploads for tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random
from typing import Any

from deployments.azure.options import AzureOptions, CredentialOptions
from deployments.blob_uploader.deployment import BlobUploader
from deployments.blob_uploader.limits import BlobLimits
from deployments.blob_uploader.messages import Uploaded, UploadJob, UploadProgress
from deployments.blob_uploader.options import BlobUploaderOptions
from deployments.results.manifest import hash_file, list_files
from deployments.results.options import StorageOptions
from deployments.runtime.metrics import RAY
from deployments.runtime.retries import RetryPolicy
from tests.emulators.azurite import Azurite
from workflows.delivery import Container

WORKFLOW, EXECUTION = "foundry_fcn3_workflow", "exec_0123"
FOLDER = f"{WORKFLOW}/{EXECUTION}"
SECRET = "e2s-planted-secret"
"""In every token."""
BLOCK = 1 << 20
RETRIES = RetryPolicy(attempts=6, initial_delay_s=0.01, max_requested_delay_s=0.2)
LIMITS = BlobLimits(block_bytes=BLOCK, small_bytes=BLOCK // 4, retries=RETRIES)


def make_results(results_dir: Path, *, chunks: int = 20, blocks: float = 3.3) -> dict[str, bytes]:
    """Write a result with a Zarr store, a NetCDF file and their companions; return its files."""
    random = Random(chunks)
    files = {f"results.zarr/t2m/c/{n}/0/0": random.randbytes(6_600) for n in range(chunks)}
    files |= {
        "results.zarr/zarr.json": b'{"zarr_format": 3}',
        "results.zarr/t2m/zarr.json": b'{"node_type": "array"}',
        "results.nc": random.randbytes(int(blocks * BLOCK)),
        "preview.png": random.randbytes(5_000),
        "metadata.json": b"{}",
        "empty.txt": b"",
        "odd name é#%.txt": b"odd",
    }
    folder = results_dir / WORKFLOW / EXECUTION
    for key, content in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    describe(results_dir)
    files["checksums.sha256"] = (folder / "checksums.sha256").read_bytes()
    return files


def describe(results_dir: Path) -> None:
    """Write the checksums of all files."""
    folder = results_dir / WORKFLOW / EXECUTION
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    described = (hash_file(p, str(p.relative_to(folder))) for p in paths)
    list_files(
        (each for each in described if each.key != "checksums.sha256"),
        (),
        folder / "checksums.sha256",
        EXECUTION,
    )


def blobs(azurite: Azurite, container: Container) -> dict[str, Any]:
    """Return the properties of all blobs of a result, by key."""
    below = f"{container.prefix}/{FOLDER}/" if container.prefix else f"{FOLDER}/"
    with azurite.client(container) as client:
        found = list(client.list_blobs(include=["metadata"]))
    assert all(blob.name.startswith(below) for blob in found)
    return {blob.name.removeprefix(below): blob for blob in found}


def make_uploader(results_dir: Path, ca_file: Path, **changes: Any) -> Any:
    """Return an uploader in this process, made as Serve makes it."""
    credential = {"secret": SECRET, "cache": True, **changes.pop("credential_options", {})}
    azure = AzureOptions(
        credential=CredentialOptions(
            loader="tests.emulators.tokens:EmulatorCredential", options=credential
        ),
        ca_file=ca_file,
    )
    metrics, work_dir = changes.pop("metrics", RAY), changes.pop("work_dir", results_dir)
    limits = LIMITS.model_copy(update=changes.pop("limits", {}))
    options = BlobUploaderOptions(azure=azure, limits=limits, report_every_s=0.01, **changes)
    deployment: Any = BlobUploader
    storage = StorageOptions(results_dir=results_dir, work_dir=work_dir)
    return deployment.func_or_class(options, storage, metrics)


def upload(uploader: Any, container: Container) -> AsyncGenerator[UploadProgress | Uploaded, None]:
    job = UploadJob(workflow=WORKFLOW, execution_id=EXECUTION, container=container)
    messages: AsyncGenerator[UploadProgress | Uploaded, None] = uploader.upload(job)
    return messages


async def uploaded(uploader: Any, container: Container) -> Uploaded:
    """Upload; return the last message."""
    *_, last = [messages async for messages in upload(uploader, container)]
    assert isinstance(last, Uploaded)
    return last


async def main() -> None:
    """Upload in a process that may be killed: RESULTS_DIR CA_FILE CONTAINER."""
    results_dir, ca_file, container = sys.argv[1:]
    uploader = make_uploader(Path(results_dir), Path(ca_file), limits={"blocks_in_flight": 1})
    async for messages in upload(uploader, Container.model_validate_json(container)):
        print(messages.model_dump_json(), flush=True)


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
