"""A deterministic forecast with any Earth2Studio model and data source."""

from collections import OrderedDict
from datetime import datetime
from typing import Any, Literal

import numpy as np
from earth2studio import run
from earth2studio.io import IOBackend

from examples.components import load_component


class DeterministicForecast:
    """Loads its components once; every request is one call."""

    name = "deterministic_earth2_workflow"
    description = "Deterministic forecast with the model and data source of the server's settings"

    def __init__(
        self,
        model: str,
        data: str,
        model_options: dict[str, Any] = {},  # noqa: B006
        data_options: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        self.model = load_component(model, **model_options)
        self.data = load_component(data, **data_options)

    def __call__(
        self,
        io: IOBackend,
        start_time: list[datetime] = [datetime(2024, 1, 1)],  # noqa: B006
        num_steps: int = 6,
        variables: list[str] | None = None,
        output_format: Literal["zarr", "netcdf4"] = "zarr",
    ) -> None:
        """Run the forecast; keep only ``variables`` if set."""
        kept = OrderedDict() if variables is None else OrderedDict(variable=np.array(variables))
        run.deterministic(
            start_time, num_steps, self.model, self.data, io, output_coords=kept, verbose=False
        )
