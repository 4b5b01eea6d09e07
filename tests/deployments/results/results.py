"""Small plans and their fields."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.base import Conditioning, Plan
from workflows.grids import Grid, LambertGrid

PROVENANCE: dict[str, Any] = {
    "model": {"name": "fcn3", "loader": "synthetic", "synthetic": True, "weights": ""},
    "data_source": {"name": "ifs", "loader": "some.module:Source", "synthetic": False},
    "software": {"earth2serve": "0.1.0", "numpy": "2.0.0"},
}


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "workflow": "foundry_fcn3_workflow",
        "model": "fcn3",
        "data_source": "ifs",
        "start_time": datetime(2025, 1, 1, 6, tzinfo=UTC),
        "step_hours": 6,
        "n_steps": 2,
        "seeds": (7, 2**32 - 1),
        "variables": ("t2m", "z500"),
        "grid": Grid(n_lat=5, n_lon=8),
        "output_format": "zarr",
        **changes,
    }
    return Plan(input_variables=values["variables"], **values)


def make_nowcast_plan(**changes: Any) -> Plan:
    """Four members on a map of their own, two for each of those that condition them."""
    conditioning = Conditioning(
        model="fcn3",
        interpolation="interpolation",
        data_source="ifs",
        start_time=datetime(2025, 1, 1, 6, tzinfo=UTC),
        seeds=(7, 2**32 - 1),
        input_variables=("z500",),
        variable="z500",
        grid=Grid(n_lat=5, n_lon=8),
    )
    values: dict[str, Any] = {
        "workflow": "foundry_fcn3_stormscope_goes_workflow",
        "model": "stormscope",
        "data_source": "goes16",
        "start_time": datetime(2025, 1, 1, 8, tzinfo=UTC),
        "step_hours": 1,
        "seeds": (1, 2, 3, 4),
        "variables": ("abi01c", "abi13c"),
        "grid": LambertGrid(n_y=3, n_x=4, spacing_m=600e3),
        "conditioning": conditioning,
    }
    return make_plan(**{**values, **changes})


def fields(plan: Plan, member: int, time_index: int) -> NDArray[np.float32]:
    """What a model would give: different everywhere, longitudes 0 to 360."""
    shape = (len(plan.variables), *plan.grid.shape)
    return np.random.default_rng([member, time_index]).standard_normal(shape, dtype=np.float32)


def expected(plan: Plan, variable: str) -> NDArray[np.float32]:
    """What the result must hold, shape (ensemble, time, lat, lon), longitudes from -180."""
    index = plan.variables.index(variable)
    values = np.array(
        [[fields(plan, m, t)[index] for t in range(plan.n_times)] for m in plan.members]
    )
    return np.roll(values, plan.grid.n_lon // 2, axis=-1)
