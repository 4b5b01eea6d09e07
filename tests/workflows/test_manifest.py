"""The manifest reads every stored document and writes the same keys and values."""

from typing import Any

import pytest

from workflows.dataset import Provenance
from workflows.delivery import parse_container
from workflows.manifest import CustomProvenance, Manifest, OutputFile

ID = "exec_1767000000_ab12cd34"
RECORD: dict[str, Any] = {
    "request_id": ID,
    "workflow_name": "foundry_fcn3_workflow",
    "status": "completed",
    "created_at": "2026-01-01T00:00:00.123456+00:00",
    "completion_time": "2026-01-01T00:01:00.500000+00:00",
    "execution_time_seconds": 59.4,
    "parameters": {"n_steps": 2},
    "storage_type": "server",
}
FILES: dict[str, Any] = {
    "output_files": [
        {"path": f"{ID}/results.zarr/zarr.json", "size": 10, "sha256": "a" * 64},
        {"path": f"{ID}/checksums.sha256", "size": 20, "sha256": "b" * 64},
    ],
    "totals": {"files": 2, "bytes": 30, "listed": 2, "truncated": False},
}
ORIGIN: dict[str, Any] = {"name": "fcn3", "loader": "", "weights": "", "synthetic": None}
OWN: dict[str, Any] = {
    "provenance": {
        "model": ORIGIN,
        "data_source": ORIGIN,
        "conditioned_on": [],
        "software": {"earth2serve": "1.0"},
        "references": "https://github.com/NVIDIA/earth2studio",
        "created": "2026-01-01T00:00:01Z",
    },
    "assets": {"results.zarr": [30, None], "preview.png": [5, "c" * 64]},
}
UPLOADED: dict[str, Any] = {
    "uploaded": {"files": 2, "bytes": 30},
    "remote_path": f"azure://data/forecasts/w/{ID}",
    "azure_account_name": "weather",
    "blob_folder_url": f"https://weather.blob.core.windows.net/data/forecasts/w/{ID}",
    "blob_url": None,
    "geo_catalog_url": "https://earth.geocatalog.example",
    "geocatalog_collection_id": "c",
    "geocatalog_stac_feature_id": "i",
}
CUSTOM: dict[str, Any] = {
    "warnings": [],
    "device": "cpu",
    "provenance": {"workflow": "users:Storms", "software": {"earth2studio": "1.0"}},
}


@pytest.mark.parametrize(
    "stored",
    [
        FILES | OWN | RECORD,
        FILES | OWN | UPLOADED | RECORD,
        FILES | CUSTOM | RECORD,
        {"output_files": [], "storage_type": "server"},
    ],
)
def test_stored_manifest_is_written_as_it_was_read(stored: dict[str, Any]) -> None:
    assert Manifest.model_validate(stored).model_dump(mode="json") == stored


def test_provenance_is_told_apart_by_its_keys() -> None:
    own, custom = Manifest.model_validate(FILES | OWN), Manifest.model_validate(FILES | CUSTOM)
    assert isinstance(own.provenance, Provenance)
    assert isinstance(custom.provenance, CustomProvenance)


def test_keys_of_other_releases_are_ignored() -> None:
    provenance = OWN["provenance"] | {"institution": ""}
    manifest = Manifest.model_validate(FILES | {"provenance": provenance, "new_key": 1})
    assert manifest.model_dump(mode="json")["provenance"] == OWN["provenance"]


def test_size_without_totals_is_that_of_the_listed_files() -> None:
    assert Manifest.model_validate(FILES).bytes == 30
    assert (
        Manifest(output_files=(OutputFile(path="x", size=7), OutputFile(path="y", size=4))).bytes
        == 11
    )


@pytest.mark.parametrize(
    ("keys", "dataset"),
    [
        (["preview.png", "results.zarr/t2m/zarr.json", "other.nc"], "results.zarr"),
        (["preview.png", "results.nc"], "results.nc"),
        (["tracks.csv"], None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/forecasts"])
def test_location_names_folder_and_dataset(
    keys: list[str], dataset: str | None, prefix: str
) -> None:
    container = parse_container(f"https://weather.blob.core.windows.net/data{prefix}")
    files = tuple(OutputFile(path=f"{ID}/{key}", size=1) for key in keys)
    found = Manifest(output_files=files).in_container(container, f"w/{ID}").model_dump(mode="json")
    folder = f"https://weather.blob.core.windows.net/data{prefix}/w/{ID}"
    assert found["remote_path"] == f"azure://data{prefix}/w/{ID}"
    assert found["azure_account_name"] == "weather"
    assert found["blob_folder_url"] == folder
    assert found["blob_url"] == (dataset and f"{folder}/{dataset}")
