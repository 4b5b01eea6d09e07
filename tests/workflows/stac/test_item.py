"""STAC documents: valid, and true of what they describe."""

from __future__ import annotations

import io
import itertools
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pyproj
import pystac
import pytest
import shapely
import xarray as xr
from azure.planetarycomputer.models import ColorMapNames, RenderOption
from pystac.extensions.datacube import DatacubeExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.results import (
    PROVENANCE,
    expected,
    fields,
    make_nowcast_plan,
    make_plan,
)
from tests.workflows.stac.schemas import validator
from workflows.base import Plan
from workflows.dataset import Provenance, describe
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid, LambertGrid
from workflows.stac import item as stac
from workflows.stormscope import VARIABLES as CHANNELS

ID = "exec_1767000000_ab12cd34"
SYNTHETIC = Provenance.model_validate(PROVENANCE)
REAL = SYNTHETIC.model_copy(
    update={
        "model": SYNTHETIC.model.model_copy(update={"synthetic": False, "weights": "hf://x@1"}),
        "institution": "Some weather service",
    }
)
SHA256 = "0123456789abcdef" * 4
PLANS = {
    f"{name}-{layout}-{output_format}": plan.model_copy(
        update={"time_layout": layout, "output_format": output_format}
    )
    for name, plan in {
        "fcn3": make_plan(),
        "stormscope": make_nowcast_plan(grid=LambertGrid()),
    }.items()
    for layout in ("time", "lead_time")
    for output_format in ("zarr", "netcdf4")
}
EVERY_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def make_item(plan: Plan, provenance: Provenance = SYNTHETIC, **changes: Any) -> dict[str, Any]:
    zarr = plan.output_format == "zarr"
    result = {"results.zarr": (1000, None)} if zarr else {"results.nc": (1000, SHA256)}
    others = ("preview.png", "metadata.json", "checksums.sha256")
    values = {
        "files": result | {name: (len(name), SHA256) for name in others},
        "collection_id": "a-collection",
        "base_href": ".",
        **changes,
    }
    item = stac.item(plan, ID, provenance, values.pop("files"), **values)
    # As others get it.
    return json.loads(json.dumps(item, allow_nan=False))


def shape_of(item: dict[str, Any]) -> shapely.Geometry:
    return shapely.from_geojson(json.dumps(item["geometry"]))


@pytest.mark.parametrize("base_href", [".", "https://account.blob.core.windows.net/c/f"])
@pytest.mark.parametrize("provenance", [SYNTHETIC, REAL], ids=["synthetic", "real"])
@EVERY_PLAN
def test_an_item_is_valid(plan: Plan, provenance: Provenance, base_href: str) -> None:
    item = make_item(plan, provenance, base_href=base_href)
    # All extensions are looked at, since pystac could be told to leave some out.
    tested = pystac.Item.from_dict(item).validate(validator())
    assert set(item["stac_extensions"]) < set(tested)


@pytest.mark.parametrize("provenance", [SYNTHETIC, REAL], ids=["synthetic", "real"])
@EVERY_PLAN
def test_a_collection_is_valid(plan: Plan, provenance: Provenance) -> None:
    document = stac.collection(plan, provenance, "a-collection")
    assert pystac.Collection.from_dict(json.loads(json.dumps(document))).validate(validator())
    assert document["id"] == "a-collection"


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
def test_the_validator_notices(damage: Any) -> None:
    item = make_item(PLANS["stormscope-time-netcdf4"])
    damage(item)
    with pytest.raises(pystac.STACValidationError):
        pystac.validation.validate_dict(item, validator=validator())


@EVERY_PLAN
def test_extensions_are_declared_if_they_are_used(plan: Plan) -> None:
    item = make_item(plan)
    found = re.findall(r'"([a-z0-9]+):\w+": ', json.dumps(item))
    declared = {url.split("/")[3] for url in item["stac_extensions"]}
    named = {"cube": "datacube", "proj": "projection", "xarray": "xarray-assets"}
    prefixes = set(found) - {"earth2serve"}
    # Those two have no prefix.
    assert {named.get(prefix, prefix) for prefix in prefixes} | {"render", "version"} == declared


def test_pystac_reads_it() -> None:
    plan = PLANS["stormscope-lead_time-netcdf4"]
    item = pystac.Item.from_dict(make_item(plan))
    assert set(DatacubeExtension.ext(item).dimensions) == {
        *("ensemble", "time", "lead_time", "y", "x")
    }
    assert ProjectionExtension.ext(item).shape == [512, 896]
    assert FileExtension.ext(item.assets["data"]).size == 1000


def test_ids_follow_from_the_execution() -> None:
    plan = make_plan(start_time=datetime(2025, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert stac.item_id(plan, ID) == f"fcn3-20250101T0000Z-{ID}"
    assert make_item(plan) == make_item(plan)
    assert stac.item_id(make_nowcast_plan(), ID) == f"stormscope-20250101T0800Z-{ID}"


def test_a_collection_of_a_workflow_has_a_name_of_its_own() -> None:
    names = ["foundry_fcn3_workflow", "Mine", "_mine", "mine.too"]
    ids = [stac.default_collection_id(name) for name in names]
    assert ids[0] == "earth2serve-foundry-fcn3-workflow"
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", each) for each in ids)


@EVERY_PLAN
def test_times_cover_the_forecast(plan: Plan) -> None:
    properties = make_item(plan)["properties"]
    assert properties["datetime"] is None
    times = re.findall(r'"(\d{4}-\d\d-\d\dT[^"]*)"', json.dumps(properties))
    # Those of titiler.xarray have no zone, as numpy wants them.
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


def test_times_of_another_zone_are_told_in_utc() -> None:
    plan = make_plan(start_time=datetime(2025, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    dimension = make_item(plan)["properties"]["cube:dimensions"]["time"]
    assert dimension["extent"] == ["2025-01-01T00:00:00Z", "2025-01-01T12:00:00Z"]


def test_a_global_footprint_is_the_whole_earth() -> None:
    item = make_item(make_plan())
    assert item["bbox"] == [-180, -90, 180, 90]
    assert shape_of(item).bounds == (-180, -90, 180, 90)
    assert shapely.is_ccw(shape_of(item).exterior)


@pytest.mark.parametrize(
    "grid",
    [LambertGrid(), LambertGrid(n_y=3, n_x=4, spacing_m=600e3), LambertGrid(n_y=2, n_x=2)],
    ids=["default", "coarse", "four points"],
)
def test_a_footprint_follows_the_grid(grid: LambertGrid) -> None:
    item = make_item(make_nowcast_plan(grid=grid))
    latitudes, longitudes = grid.latitudes(), grid.longitudes()
    west, south, east, north = item["bbox"]
    assert [west, east] == pytest.approx([longitudes.min(), longitudes.max()], abs=1e-6)
    assert [south, north] == pytest.approx([latitudes.min(), latitudes.max()], abs=1e-6)
    ground = shape_of(item)
    assert ground.is_valid
    assert shapely.is_ccw(ground.exterior)
    assert ground.bounds == (west, south, east, north)
    vertices = np.array(ground.exterior.coords)
    for corner in itertools.product((0, -1), (0, -1)):
        place = longitudes[corner], latitudes[corner]
        assert np.abs(vertices - place).max(axis=1).min() < 1e-6
    assert all(
        shapely.distance(ground, shapely.points(longitudes[edge], latitudes[edge])).max() < 0.03
        for edge in ((0,), (-1,), (slice(None), 0), (slice(None), -1))
    )
    # Straight sides between few corners would miss what lies north of them.
    assert len(vertices) > 64 or grid.n_x < 17


def test_a_footprint_is_cut_at_the_antimeridian() -> None:
    grid = LambertGrid(n_y=70, n_x=140, spacing_m=100e3, first_x_m=-7e6, first_y_m=-1e6)
    item = make_item(make_nowcast_plan(grid=grid))
    pystac.Item.from_dict(item).validate(validator())
    ground = shape_of(item)
    assert (ground.geom_type, len(ground.geoms), ground.is_valid) == ("MultiPolygon", 2, True)
    assert all(shapely.is_ccw(part.exterior) for part in ground.geoms)
    west, south, east, north = item["bbox"]
    assert west > east
    assert -180 <= ground.bounds[0] < ground.bounds[2] <= 180
    longitudes, latitudes = grid.longitudes().ravel(), grid.latitudes().ravel()
    assert ((longitudes >= west - 1e-6) | (longitudes <= east + 1e-6)).all()
    assert (latitudes >= south - 1e-6).all() and (latitudes <= north + 1e-6).all()
    assert shapely.distance(ground, shapely.points(longitudes, latitudes)).max() < 1


def test_the_projection_is_that_of_the_grid() -> None:
    plan = make_nowcast_plan(grid=LambertGrid())
    properties = make_item(plan)["properties"]
    assert properties["proj:code"] is None
    crs = pyproj.CRS.from_json(json.dumps(properties["proj:projjson"]))
    *_, mapping = describe(plan, ID, SYNTHETIC).coordinates
    same = pyproj.CRS.from_cf(dict(mapping.attributes))
    onto_same = pyproj.Transformer.from_crs(crs, same, always_xy=True)
    back = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    rows, columns = plan.grid.shape
    width, _, left, _, height, top = properties["proj:transform"]
    assert properties["proj:shape"] == [rows, columns]
    latitudes, longitudes = plan.grid.latitudes(), plan.grid.longitudes()
    for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)):
        x, y = left + width * (column + 0.5), top + height * (row + 0.5)
        place = longitudes[row, column], latitudes[row, column]
        assert back.transform(x, y) == pytest.approx(place, abs=1e-9)
        assert onto_same.transform(x, y) == pytest.approx((x, y), abs=1e-3)


def test_cells_of_the_global_grid_have_its_points_in_their_middle() -> None:
    plan = make_plan(grid=Grid())
    properties = make_item(plan)["properties"]
    width, _, left, _, height, top = properties["proj:transform"]
    rows, columns = properties["proj:shape"]
    assert pyproj.CRS.from_user_input(properties["proj:code"]).is_geographic
    assert left + width * (np.arange(columns) + 0.5) == pytest.approx(plan.grid.output_longitudes())
    assert top + height * (np.arange(rows) + 0.5) == pytest.approx(plan.grid.latitudes())


@EVERY_PLAN
def test_the_cube_is_the_dataset(plan: Plan, tmp_path: Path) -> None:
    store = ResultsStore(DiskStorage(tmp_path, tmp_path / "work"))
    plan = plan.model_copy(update={"output_format": "zarr"})
    store.create(plan, ID, SYNTHETIC, 1)
    item = make_item(plan)
    properties, data = item["properties"], item["assets"]["data"]
    path = tmp_path / plan.workflow / ID / data["href"]
    with xr.open_dataset(path, **data["xarray:open_kwargs"]) as dataset:
        dimensions, variables = properties["cube:dimensions"], properties["cube:variables"]
        assert set(variables) == {*dataset.variables} - {*dataset.dims, "crs"}
        assert not set(variables) & set(dimensions)
        for name, variable in variables.items():
            assert tuple(variable["dimensions"]) == dataset[name].dims
            assert variable["type"] == ("data" if name in plan.variables else "auxiliary")
            assert variable["unit"] == dataset[name].attrs["units"]
            assert variable["data_type"] == dataset[name].dtype
        assert list(dimensions) == list(dataset[plan.variables[0]].dims)
        for name, dimension in dimensions.items():
            values = dataset[name].values
            low, high = dimension["extent"]
            if dimension["type"] == "temporal":
                values = np.datetime_as_string(values.astype("M8[s]"), timezone="UTC").tolist()
            elif name == "lead_time":
                values = values / np.timedelta64(1, dimension["unit"])
            assert (low, high) == (min(values), max(values))
            if name not in ("time", "ensemble"):
                assert dimension["step"] == pytest.approx(values[1] - values[0])


def test_the_lead_times_are_apart_if_the_plan_says_so() -> None:
    dimensions = make_item(make_plan(time_layout="lead_time"))["properties"]["cube:dimensions"]
    assert dimensions["time"]["values"] == ["2025-01-01T06:00:00Z"]
    assert (dimensions["lead_time"]["extent"], dimensions["lead_time"]["step"]) == ([0, 12], 6)


def test_a_forecast_of_one_quantity_names_it() -> None:
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
    # GeoCatalog makes no Kerchunk asset of anything else.
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


def test_only_files_that_are_there_are_assets() -> None:
    item = make_item(make_plan(), files={"results.zarr": (1, None), "notes.txt": (1, SHA256)})
    assert set(item["assets"]) == {"data"}
    with pytest.raises(ValueError, match="no result"):
        make_item(make_plan(), files={"preview.png": (1, SHA256)})


def test_links_are_relative_only_beside_the_files() -> None:
    links = {link["rel"]: link["href"] for link in make_item(make_plan())["links"]}
    assert links == {
        "root": "../../catalog.json",
        "parent": "../collection.json",
        "collection": "../collection.json",
    }
    collection = "https://catalog.example/stac/collections/a-collection"
    there = make_item(make_plan(), base_href="https://x/y", collection_href=collection)
    assert {link["href"] for link in there["links"]} == {collection}


def test_synthetic_data_are_called_so() -> None:
    item = make_item(make_plan())
    assert item["properties"]["earth2serve:synthetic"] is True
    assert "ynthetic" in item["properties"]["title"]
    assert "not a forecast" in item["properties"]["description"]
    collection = stac.collection(make_plan(), SYNTHETIC, "c")
    assert "synthetic" in collection["title"]
    assert "not forecasts" in collection["description"]


def test_real_data_are_not() -> None:
    item, collection = make_item(make_plan(), REAL), stac.collection(make_plan(), REAL, "c")
    properties = item["properties"]
    assert properties["earth2serve:synthetic"] is False
    assert "ynthetic" not in properties["title"] + properties["description"] + collection["title"]
    assert properties["earth2serve:weights"] == "hf://x@1"
    assert properties["processing:facility"] == "Some weather service"
    assert collection["providers"][0]["name"] == "Some weather service"


def test_what_is_not_known_is_left_out() -> None:
    unknown = SYNTHETIC.model_copy(
        update={
            "model": SYNTHETIC.model.model_copy(update={"synthetic": None}),
            "software": {},
        }
    )
    item = make_item(make_plan(variables=("mystery",)), unknown)
    pystac.Item.from_dict(item).validate(validator())
    missing = {"earth2serve:synthetic", "version", "processing:software", "renders", "providers"}
    assert not missing & set(item["properties"])
    assert not [url for url in item["stac_extensions"] if "/version/" in url or "/render/" in url]


def test_seeds_of_both_ensembles_are_told() -> None:
    properties = make_item(make_nowcast_plan())["properties"]
    assert properties["earth2serve:seeds"] == [1, 2, 3, 4]
    assert properties["earth2serve:conditioning_seeds"] == [7, 2**32 - 1]
    assert properties["earth2serve:conditioning_variable"] == "z500"


ALL = {
    "fcn3": make_plan(variables=VARIABLES),
    "stormscope": make_nowcast_plan(variables=CHANNELS),
    "surface": make_plan(variables=("tcwv", "sp", "mystery", "t2m")),
}


@pytest.mark.parametrize("layout", ["time", "lead_time"])
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("name", ALL)
def test_render_options_name_what_is_there(name: str, output_format: str, layout: str) -> None:
    plan = ALL[name].model_copy(update={"output_format": output_format, "time_layout": layout})
    dataset = describe(plan, ID, SYNTHETIC)
    options = stac.render_options(plan)
    assert 0 < len(options) <= 10
    assert len({option["id"] for option in options}) == len(options)
    for option in options:
        assert set(option) == {"id", "name", "type", "options", "minZoom"}
        assert RenderOption(option).type == "raster-tile"
        asked = parse_qs(option["options"], strict_parsing=True)
        assert asked["assets"] == ["data" if output_format == "zarr" else "data-kerchunk"]
        (variable,) = asked["subdataset_name"]
        assert variable in plan.variables
        sel = dict(pair.split("=") for pair in asked["sel"])
        assert asked["sel_method"] == ["nearest"]
        assert int(sel.pop("ensemble")) in plan.members
        assert datetime.fromisoformat(sel.pop("time")) > datetime(2099, 1, 1)
        assert not sel
        bands = dataset.dims["lead_time"] if layout == "lead_time" else 1
        assert 1 <= int(asked.get("bidx", ["1"])[0]) <= bands
        low, high = map(float, asked["rescale"][0].split(","))
        assert low < high
        assert asked["colormap_name"][0] in {each.value for each in ColorMapNames}


def test_options_of_each_format_and_layout_can_lie_side_by_side() -> None:
    ids = [option["id"] for plan in PLANS.values() for option in stac.render_options(plan)]
    assert len(set(ids)) == len(ids) == 2 * len(PLANS)


def test_known_variables_come_first() -> None:
    drawn = [option["name"] for option in stac.render_options(ALL["surface"])]
    assert drawn == [
        "Air temperature at 2 m (Zarr)",
        "Total column water vapour (Zarr)",
        "Surface pressure (Zarr)",
    ]
    assert stac.render_options(make_plan(variables=("mystery", "x500"))) == []


@pytest.mark.parametrize(
    ("variable", "usual"),
    [
        ("t2m", (250, 305)),
        ("t50", (195, 230)),
        ("t700", (240, 285)),
        ("z500", (49_000, 58_000)),
        ("z300", (82_000, 95_000)),
        ("z1000", (-2000, 2500)),
        ("q1000", (0.001, 0.02)),
        ("q50", (2e-6, 4e-6)),
        ("u200", (-30, 60)),
        ("msl", (97_500, 104_000)),
        ("abi02c", (0.05, 0.9)),
        ("abi09c", (210, 260)),
        ("abi13c", (200, 310)),
    ],
)
def test_ranges_hold_usual_values_and_little_else(
    variable: str, usual: tuple[float, float]
) -> None:
    (render,) = make_item(make_plan(variables=(variable,)))["properties"]["renders"].values()
    ((low, high),) = render["rescale"]
    assert low <= usual[0] < usual[1] <= high
    assert high - low < 3.5 * (usual[1] - usual[0])


@EVERY_PLAN
def test_renders_of_an_item_refer_to_it(plan: Plan) -> None:
    item = make_item(plan)
    for name, render in item["properties"]["renders"].items():
        assert name == render["variable"] in item["properties"]["cube:variables"]
        assert set(render["assets"]) <= set(item["assets"])


@pytest.mark.models  # titiler takes seconds to import
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("layout", ["time", "lead_time"])
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
def test_a_tiler_draws_the_last_time(tmp_path: Path, output_format: str, layout: str) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from titiler.xarray.factory import TilerFactory
    from titiler.xarray.io import FsReader, Reader

    plan = make_plan(
        grid=Grid(n_lat=91, n_lon=180), output_format=output_format, time_layout=layout
    )
    store = ResultsStore(DiskStorage(tmp_path, tmp_path / "work"))
    store.create(plan, ID, SYNTHETIC, 1)
    for member in plan.members:
        for time_index in range(plan.n_times):
            store.write_step(ID, 1, member, time_index, fields(plan, member, time_index))
    if output_format == "netcdf4":
        store.export_netcdf(ID, 1)
    item = make_item(plan)
    app = FastAPI()
    reader: Any = Reader if output_format == "zarr" else FsReader
    app.include_router(TilerFactory(reader=reader).router)
    path = tmp_path / plan.workflow / ID / item["assets"]["data"]["href"]

    def first_value(variable: str, sel: list[str], bands: list[int]) -> float:
        # The part around a place of its grid, in the grid's own projection.
        answer = TestClient(app).get(
            "/bbox/-1,-1,1,1/1x1.npy",
            params={"url": str(path), "variable": variable, "sel": sel, "bidx": bands},
        )
        assert answer.status_code == 200, answer.text
        return float(np.load(io.BytesIO(answer.content))[0, 0, 0])

    for variable, render in item["properties"]["renders"].items():
        values = expected(plan, variable)[0, :, 45, 90]
        found = first_value(variable, render["sel"], render.get("bidx", []))
        assert found == pytest.approx(values[-1])
        (asked,) = (
            parse_qs(option["options"])
            for option in stac.render_options(plan)
            if f"subdataset_name={variable}&" in option["options"]
        )
        # This TiTiler has the method before the value, GeoCatalog's has it by itself.
        sel = [pair.replace("=", f"={asked['sel_method'][0]}::") for pair in asked["sel"]]
        bands = [int(band) for band in asked.get("bidx", [])]
        place = {"time": -1, "lead_time": 1}[layout]
        assert first_value(variable, sel, bands) == pytest.approx(values[place])
