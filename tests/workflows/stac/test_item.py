"""STAC items: valid, and true to the results that they describe."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pystac
import pytest
from pystac.extensions.datacube import DatacubeExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension

from tests.deployments.results.samples import (
    make_nowcast_plan,
    make_plan,
)
from tests.workflows.stac.items import EVERY_PLAN, ID, PLANS, REAL, SHA256, SYNTHETIC, make_item
from tests.workflows.stac.stac_validator import validator
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.stac.collection import describe_collection
from workflows.stac.item import item_id


@pytest.mark.parametrize("base_href", [".", "https://account.blob.core.windows.net/c/f"])
@pytest.mark.parametrize("provenance", [SYNTHETIC, REAL], ids=["synthetic", "real"])
@EVERY_PLAN
def test_an_item_is_valid(plan: Plan, provenance: Provenance, base_href: str) -> None:
    item = make_item(plan, provenance, base_href=base_href)
    # pystac can skip extensions: check that all of them were validated.
    tested = pystac.Item.from_dict(item).validate(validator())
    assert set(item["stac_extensions"]) < set(tested)


@pytest.mark.parametrize(
    "damage",
    [
        lambda item: item["properties"].pop("forecast:reference_datetime"),
        lambda item: item["properties"].update({"start_datetime": "2025-01-01T00:00:00"}),
        lambda item: item["properties"].update({"proj:projjson": {"type": "ProjectedCRS"}}),
        lambda item: item["properties"]["cube:dimensions"]["y"].pop("extent"),
        lambda item: item["assets"]["data"].update({"file:checksum": "sha256"}),
        lambda item: item["properties"]["renders"]["abi01c"].pop("assets"),
        lambda item: item["links"].clear(),
    ],
)
def test_the_validator_rejects_damaged_items(damage: Any) -> None:
    item = make_item(PLANS["stormscope-time-netcdf4"])
    damage(item)
    with pytest.raises(pystac.STACValidationError):
        pystac.validation.validate_dict(item, validator=validator())


@EVERY_PLAN
def test_declared_extensions_are_those_used(plan: Plan) -> None:
    item = make_item(plan)
    found = re.findall(r'"([a-z0-9]+):\w+": ', json.dumps(item))
    declared = {url.split("/")[3] for url in item["stac_extensions"]}
    named = {"cube": "datacube", "proj": "projection", "xarray": "xarray-assets"}
    prefixes = set(found) - {"earth2serve"}
    # The fields of these two have no prefix.
    assert {named.get(prefix, prefix) for prefix in prefixes} | {"render", "version"} == declared


def test_pystac_reads_an_item() -> None:
    plan = PLANS["stormscope-lead_time-netcdf4"]
    item = pystac.Item.from_dict(make_item(plan))
    assert set(DatacubeExtension.ext(item).dimensions) == {
        *("ensemble", "time", "lead_time", "y", "x")
    }
    assert ProjectionExtension.ext(item).shape == [512, 896]
    assert FileExtension.ext(item.assets["data"]).size == 1000


def test_item_ids_depend_on_the_execution_only() -> None:
    plan = make_plan(start_time=datetime(2025, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert item_id(plan, ID) == f"fcn3-20250101T0000Z-{ID}"
    assert make_item(plan) == make_item(plan)
    assert item_id(make_nowcast_plan(), ID) == f"stormscope-20250101T0800Z-{ID}"


@EVERY_PLAN
def test_times_cover_the_forecast(plan: Plan) -> None:
    properties = make_item(plan)["properties"]
    assert properties["datetime"] is None
    times = re.findall(r'"(\d{4}-\d\d-\d\dT[^"]*)"', json.dumps(properties))
    # The times for titiler.xarray have no zone, since NumPy accepts none.
    zoned = [time for time in times if time.endswith("Z")]
    assert len(zoned) >= 7
    assert all(datetime.fromisoformat(time).tzinfo == UTC for time in zoned)
    start, end = (
        datetime.fromisoformat(properties[name]) for name in ("start_datetime", "end_datetime")
    )
    assert (start, end) == (plan.start_time, plan.end_time())
    assert properties["forecast:reference_datetime"] == properties["start_datetime"]
    hours = int(re.fullmatch(r"PT(\d+)H", properties["forecast:horizon"])[1])
    assert start + timedelta(hours=hours) == end


def test_a_forecast_of_one_quantity_names_its_standard_name() -> None:
    one = make_item(make_nowcast_plan(variables=("abi08c", "abi13c")))["properties"]
    assert one["forecast:variable"] == "toa_brightness_temperature"
    assert "forecast:variable" not in make_item(make_plan())["properties"]
    unknown = make_item(make_plan(variables=("mystery",)))["properties"]
    assert "forecast:variable" not in unknown
    assert "unit" not in unknown["cube:variables"]["mystery"]


def test_assets_of_a_netcdf_result() -> None:
    item = make_item(PLANS["fcn3-time-netcdf4"], base_href="https://a.blob.core.windows.net/c/f/")
    data = item["assets"]["data"]
    assert data["href"] == "https://a.blob.core.windows.net/c/f/results.nc"
    # GeoCatalog makes a Kerchunk asset only of an asset like this.
    assert (data["type"], data["roles"]) == ("application/netcdf", ["data"])
    assert (data["file:size"], data["file:checksum"]) == (1000, f"1220{SHA256}")
    assert "xarray:open_kwargs" not in data
    thumbnail = item["assets"]["thumbnail"]
    assert (thumbnail["type"], thumbnail["roles"]) == ("image/png", ["thumbnail"])
    assert set(item["assets"]) == {"data", "thumbnail", "metadata", "checksums"}


def test_assets_of_a_zarr_result() -> None:
    data = make_item(PLANS["fcn3-time-zarr"])["assets"]["data"]
    assert (data["href"], data["file:size"]) == ("./results.zarr", 1000)
    assert (data["type"], data["roles"]) == ("application/vnd.zarr; version=3", ["data"])
    assert "file:checksum" not in data


def test_only_known_files_become_assets() -> None:
    item = make_item(make_plan(), files={"results.zarr": (1, None), "notes.txt": (1, SHA256)})
    assert set(item["assets"]) == {"data"}
    with pytest.raises(ValueError, match="include no result"):
        make_item(make_plan(), files={"preview.png": (1, SHA256)})


def test_links_are_relative_only_beside_the_files() -> None:
    links = {link["rel"]: link["href"] for link in make_item(make_plan())["links"]}
    assert links == dict.fromkeys(("root", "parent", "collection"), "./collection.json")
    collection = "https://catalog.example/stac/collections/a-collection"
    there = make_item(make_plan(), base_href="https://x/y", collection_href=collection)
    assert {link["href"] for link in there["links"]} == {collection}


def test_synthetic_data_are_labelled() -> None:
    item = make_item(make_plan())
    assert item["properties"]["earth2serve:synthetic"] is True
    assert "ynthetic" in item["properties"]["title"]
    assert "not a forecast" in item["properties"]["description"]
    collection = describe_collection(make_plan(), SYNTHETIC, "c")
    assert "synthetic" in collection["title"]
    assert "not forecasts" in collection["description"]


def test_real_data_are_not_labelled_synthetic() -> None:
    item, collection = make_item(make_plan(), REAL), describe_collection(make_plan(), REAL, "c")
    properties = item["properties"]
    assert properties["earth2serve:synthetic"] is False
    assert "ynthetic" not in properties["title"] + properties["description"] + collection["title"]
    assert properties["earth2serve:weights"] == "hf://x@1"


def test_unknown_properties_are_omitted() -> None:
    unknown = SYNTHETIC.model_copy(
        update={
            "model": SYNTHETIC.model.model_copy(update={"synthetic": None}),
            "software": {},
        }
    )
    item = make_item(make_plan(variables=("mystery",)), unknown)
    pystac.Item.from_dict(item).validate(validator())
    missing = {"earth2serve:synthetic", "version", "processing:software", "renders"}
    assert not missing & set(item["properties"])
    assert not [url for url in item["stac_extensions"] if "/version/" in url or "/render/" in url]


def test_seeds_of_both_ensembles_are_listed() -> None:
    properties = make_item(make_nowcast_plan())["properties"]
    assert properties["earth2serve:seeds"] == [1, 2, 3, 4]
    assert properties["earth2serve:conditioning_seeds"] == [7, 2**32 - 1]
    assert properties["earth2serve:conditioning_variable"] == "z500"
