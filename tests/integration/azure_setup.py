"""Settings of a server that uses emulators of Azure, and checks of what it wrote there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pystac
import xarray as xr
import zarr
from azure.storage.blob import ContainerClient
from earth2studio.serve.client.models import InferenceRequestResults, StorageType

from tests.emulators.azurite import Azurite
from tests.emulators.geocatalog import GeoCatalogEmulator
from tests.integration.serving import WORKFLOW as FORECAST
from tests.integration.serving import Server
from workflows.delivery import Container
from workflows.stormscope import StormScopeWorkflow

NOWCAST = StormScopeWorkflow.name
SECRET = "planted-7f3a9c-secret"
GRID = {"n_lat": 91, "n_lon": 180}
REGION = {"n_y": 16, "n_x": 24, "spacing_m": 2e5, "first_y_m": -1.5e6, "first_x_m": -2.3e6}
PARAMETERS: dict[str, dict[str, Any]] = {
    FORECAST: {"n_steps": 2, "seeds": [1, 2], "variables": ["t2m", "z500"]},
    NOWCAST: {
        "n_steps": 2,
        "n_samples_fcn3": 1,
        "n_samples_stormscope": 2,
        "variables": ["abi01c", "abi13c"],
    },
}


class AzureSetup:
    """The emulators and the settings for them."""

    def __init__(self, azurite: Azurite, catalog: GeoCatalogEmulator, folder: Path) -> None:
        self.azurite = azurite
        self.catalog = catalog
        self.container: Container = azurite.new_container()
        self.data_dir = folder / "var"
        self.args: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "workflows": {"exposed": [FORECAST, NOWCAST]},
            "models": {"fcn3": {"grid": GRID}, "stormscope": {"grid": REGION}},
            "azure": {
                "credential": {
                    "loader": "tests.emulators.tokens:EmulatorCredential",
                    "options": {"secret": SECRET},
                },
                "ca_file": str(azurite.ca_file),
                "blob": {
                    "emulator": azurite.endpoint,
                    "allowed_containers": [self.container.url],
                    "signed_url_s": 600,
                },
                "geocatalog": {"allowed": [catalog.url], "time_limit_s": 20},
            },
        }

    @property
    def delivery(self) -> dict[str, str]:
        return {
            "container_url": f"{self.container.url}/forecasts",
            "geo_catalog_url": self.catalog.url,
        }

    def blobs(self) -> ContainerClient:
        return self.azurite.client(self.container)

    def open_dataset(self, href: str) -> xr.Dataset:
        """Open a Zarr store or a NetCDF file from its blobs."""
        key = href.removeprefix(f"{self.container.account_url}/{self.container.name}/")
        if href.endswith(".nc"):
            with tempfile.NamedTemporaryFile(suffix=".nc") as file:
                self.blobs().download_blob(key).readinto(file)
                file.flush()
                return xr.open_dataset(file.name, engine="netcdf4").load()
        objects = {
            blob.name.removeprefix(f"{key}/"): zarr.core.buffer.cpu.Buffer.from_bytes(
                self.blobs().download_blob(blob.name).readall()
            )
            for blob in self.blobs().list_blobs(name_starts_with=f"{key}/")
        }
        return xr.open_zarr(zarr.storage.MemoryStore(objects), consolidated=True).load()


def run(server: Server, workflow: str, **parameters: Any) -> tuple[str, dict[str, Any]]:
    """Run a workflow; return the execution and its manifest, which the SDK can read."""
    server = server.client_of(workflow)
    execution_id = server.submit(**PARAMETERS[workflow], **parameters)
    server.completed(execution_id)
    manifest = server.manifest(execution_id)
    assert InferenceRequestResults.from_dict(manifest).storage_type == StorageType.SERVER
    return execution_id, manifest


def check_render_options(
    azure: AzureSetup,
    item: pystac.Item,
    dataset: xr.Dataset,
    variables: Sequence[str],
    output_format: str,
) -> None:
    """Check that TiTiler draws each render option from the blobs: the last map of a member."""
    options = [
        parse_qs(option["options"])
        for option in azure.catalog.render_options[item.collection_id].values()
        if output_format.replace("netcdf4", "netcdf") in option["id"]
    ]
    for variable in variables:
        (option,) = [o for o in options if o["subdataset_name"] == [variable]]
        assert option["assets"][0] in item.assets
        member = int(option["bidx"][0]) - 1 if "bidx" in option else 0
        last = dataset[variable].isel(time=-1, ensemble=member)
        for point in ((5, 7), (8, 12), (11, 3)):
            lat, lon = _position(dataset, *point)
            (drawn,) = _draw(azure, item.assets["data"].href, variable, option, lat, lon)
            assert drawn == last.values[point]


def _position(dataset: xr.Dataset, row: int, column: int) -> tuple[float, float]:
    """Return latitude and longitude of a grid point."""
    if "lat" not in dataset:
        return float(dataset["latitude"][row, column]), float(dataset["longitude"][row, column])
    return float(dataset["lat"][row]), float(dataset["lon"][column])


def _draw(
    azure: AzureSetup,
    href: str,
    variable: str,
    option: Mapping[str, Sequence[str]],
    lat: float,
    lon: float,
) -> Sequence[float]:
    """Draw one pixel as GeoCatalog's tiler does; return a value for each band."""
    from titiler.xarray.io import Reader

    # This TiTiler takes the method before the value, GeoCatalog's as a parameter of its own.
    sel = [pair.replace("=", f"={option['sel_method'][0]}::") for pair in option["sel"]]
    bands = [int(band) for band in option.get("bidx", [])]
    with Reader(
        src_path=href, variable=variable, sel=sel, opener=lambda href, **_: azure.open_dataset(href)
    ) as reader:
        values: Sequence[float] = reader.point(lon, lat, indexes=bands or None).array.tolist()
        return values
