"""What tilers draw exists in the result, with suitable ranges and colours."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
from azure.planetarycomputer.models import ColorMapNames, RenderOption

from deployments.results.disk import DiskStorage
from deployments.results.store import ResultsStore
from tests.deployments.results.samples import (
    expected,
    fields,
    make_nowcast_plan,
    make_plan,
)
from tests.workflows.stac.items import EVERY_PLAN, ID, PLANS, SYNTHETIC, make_item
from workflows.base import Plan
from workflows.dataset import describe
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid
from workflows.stac.renders import render_options
from workflows.stormscope import VARIABLES as CHANNELS

ALL = {
    "fcn3": make_plan(variables=VARIABLES),
    "stormscope": make_nowcast_plan(variables=CHANNELS),
    "surface": make_plan(variables=("tcwv", "sp", "mystery", "t2m")),
}


@pytest.mark.parametrize("layout", ["time", "lead_time"])
@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@pytest.mark.parametrize("name", ALL)
def test_render_options_name_existing_variables(name: str, output_format: str, layout: str) -> None:
    plan = ALL[name].model_copy(update={"output_format": output_format, "time_layout": layout})
    dataset = describe(plan, ID, SYNTHETIC)
    options = render_options(plan)
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


def test_option_ids_differ_between_formats_and_layouts() -> None:
    ids = [option["id"] for plan in PLANS.values() for option in render_options(plan)]
    assert len(set(ids)) == len(ids) == 2 * len(PLANS)


def test_preferred_variables_come_first() -> None:
    drawn = [option["name"] for option in render_options(ALL["surface"])]
    assert drawn == [
        "Air temperature at 2 m (Zarr)",
        "Total column water vapour (Zarr)",
        "Surface pressure (Zarr)",
    ]
    assert render_options(make_plan(variables=("mystery", "x500"))) == []


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
def test_ranges_fit_usual_values(variable: str, usual: tuple[float, float]) -> None:
    (render,) = make_item(make_plan(variables=(variable,)))["properties"]["renders"].values()
    ((low, high),) = render["rescale"]
    assert low <= usual[0] < usual[1] <= high
    assert high - low < 3.5 * (usual[1] - usual[0])


@EVERY_PLAN
def test_renders_refer_to_the_items_assets(plan: Plan) -> None:
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
        # The area around one grid point, in the grid's own projection.
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
            for option in render_options(plan)
            if f"subdataset_name={variable}&" in option["options"]
        )
        # This TiTiler takes the method as a prefix of the value, GeoCatalog's as a parameter.
        sel = [pair.replace("=", f"={asked['sel_method'][0]}::") for pair in asked["sel"]]
        bands = [int(band) for band in asked.get("bidx", [])]
        place = {"time": -1, "lead_time": 1}[layout]
        assert first_value(variable, sel, bands) == pytest.approx(values[place])
