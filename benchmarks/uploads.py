"""Uploads to Blob Storage, compared with plain use of azure-storage-blob, file after file."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.report import Report, Target, ratio_of_neighbours
from deployments.azure.options import AzureOptions, CredentialOptions
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.deployment import BlobUploader
from deployments.blob_uploader.messages import Uploaded, UploadJob
from deployments.blob_uploader.options import BlobUploaderOptions
from deployments.results.manifest import hash_file, list_files
from deployments.results.options import StorageOptions
from tests.emulators.azurite import Azurite, find_azurite
from workflows.delivery import Container

WORKFLOW, EXECUTION = "benchmark", "exec_uploads"
CREDENTIAL = "tests.emulators.tokens:EmulatorCredential"
CHUNK_BYTES, CHUNKS = 66_000, 2000
NETCDF_BYTES = 500_000_000
ROUNDS = 5
TARGETS = {"NetCDF": Target(1.0, at_least=True), "Zarr": Target(2.0, at_least=True)}

Upload = Callable[[Azurite, Container, Path], float]
"""Uploads a result; returns the seconds it took."""


def measure_uploads(report: Report, *, quick: bool) -> None:
    """Upload one large file, and a store of many small ones, alternating between both ways.

    Each upload gets its own Azurite, which keeps blobs on disk: the more blobs it has, the slower
    it accepts further ones.
    """
    executable = find_azurite()
    if executable is None:
        print("\nuploads are skipped: Azurite is not installed, see `make test`")
        return
    for name, make in {"NetCDF": _netcdf, "Zarr": _zarr}.items():
        with tempfile.TemporaryDirectory(prefix="e2s-bench-") as folder:
            results_dir = Path(folder)
            files, size = make(results_dir / WORKFLOW / EXECUTION, quick)
            report.start(f"upload of {name}, {files} files with {size / 1e6:.0f} MB, to Azurite")
            runs: dict[str, list[float]] = {"BlobUploader": [], "azure-storage-blob": []}
            for _ in range(1 if quick else ROUNDS):
                runs["azure-storage-blob"].append(_run(_plain, executable, results_dir))
                runs["BlobUploader"].append(_run(_ours, executable, results_dir))
        for uploader, seconds in runs.items():
            report.add(uploader, size / 1e6 / median(seconds), "MB/s")
        ratio, spread = ratio_of_neighbours(runs["azure-storage-blob"], runs["BlobUploader"])
        report.add(
            f"{name}: times as fast", ratio, "x", target=TARGETS[name], note=spread, runs=runs
        )


def _run(upload: Upload, executable: str, results_dir: Path) -> float:
    with Azurite(executable, on_disk=True) as azurite:
        return upload(azurite, azurite.new_container(), results_dir)


def _ours(azurite: Azurite, container: Container, results_dir: Path) -> float:
    azure = _azure(azurite)
    deployment: Any = BlobUploader
    storage = StorageOptions(results_dir=results_dir, work_dir=results_dir / "work")
    uploader = deployment.func_or_class(BlobUploaderOptions(azure=azure), storage)
    job = UploadJob(workflow=WORKFLOW, execution_id=EXECUTION, container=container)

    async def upload() -> None:
        *_, last = [progress async for progress in uploader.upload(job)]
        if not isinstance(last, Uploaded) or last.uploaded_files != last.files:
            raise RuntimeError(f"the upload ended with {last}")

    started = time.perf_counter()
    asyncio.run(upload())
    return time.perf_counter() - started


def _plain(azurite: Azurite, container: Container, results_dir: Path) -> float:
    from azure.storage.blob import ContainerClient

    azure = _azure(azurite)
    started = time.perf_counter()
    credential: Any = TokenBridge(azure)
    with ContainerClient(
        container.account_url,
        container.name,
        credential=credential,
        connection_verify=str(azure.ca_file),
    ) as client:
        for path in sorted(results_dir.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    client.upload_blob(str(path.relative_to(results_dir)), file, overwrite=True)
    return time.perf_counter() - started


def _azure(azurite: Azurite) -> AzureOptions:
    options = {"cache": True}
    credential = CredentialOptions(loader=CREDENTIAL, options=options)
    return AzureOptions(credential=credential, ca_file=azurite.ca_file)


def _netcdf(folder: Path, quick: bool) -> tuple[int, int]:
    return _write(folder, {"results.nc": NETCDF_BYTES // (5 if quick else 1)})


def _zarr(folder: Path, quick: bool) -> tuple[int, int]:
    chunks = CHUNKS // (5 if quick else 1)
    return _write(folder, {f"results.zarr/t2m/c/{n}/0/0": CHUNK_BYTES for n in range(chunks)})


def _write(folder: Path, sizes: dict[str, int]) -> tuple[int, int]:
    """Write files of noise and their checksums; return the numbers of files and bytes."""
    random = Random(1)
    for key, size in sizes.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while remaining := size - file.tell():
                file.write(random.randbytes(min(remaining, 1 << 24)))
    described = (hash_file(folder / key, key) for key in sizes)
    totals = list_files(described, (), folder / "checksums.sha256", EXECUTION).totals
    return totals.files, totals.bytes
