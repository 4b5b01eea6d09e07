"""Items of every kind of plan, for the tests of STAC documents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.deployments.results.samples import PROVENANCE, make_nowcast_plan, make_plan
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.grids import LambertGrid
from workflows.stac.item import describe_item

ID = "exec_1767000000_ab12cd34"
SYNTHETIC = PROVENANCE
REAL = SYNTHETIC.model_copy(
    update={
        "model": SYNTHETIC.model.model_copy(update={"synthetic": False, "weights": "hf://x@1"}),
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
    item = describe_item(plan, ID, provenance, values.pop("files"), **values)
    # As clients receive it.
    return json.loads(json.dumps(item, allow_nan=False))
