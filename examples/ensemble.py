"""An ensemble forecast, with any of Earth2Studio's perturbations of initial conditions."""

from collections import OrderedDict
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from earth2studio import run
from earth2studio.io import IOBackend
from pydantic import Field

from examples.components import load_component


class EnsembleForecast:
    """Loads its components once; every request is one call."""

    name = "ensemble_earth2_workflow"
    description = "Ensemble forecast from perturbed initial conditions"

    def __init__(
        self,
        model: str,
        data: str,
        perturbation: str = "earth2studio.perturbation:Gaussian",
        model_options: dict[str, Any] = {},  # noqa: B006
        data_options: dict[str, Any] = {},  # noqa: B006
        perturbation_options: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        self.model = load_component(model, **model_options)
        self.data = load_component(data, **data_options)
        self.perturbation = partial(load_component, perturbation, **perturbation_options)

    def __call__(
        self,
        io: IOBackend,
        start_time: list[datetime] = [datetime(2024, 1, 1)],  # noqa: B006
        num_steps: int = 6,
        n_members: Annotated[int, Field(ge=1, le=64)] = 4,
        seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
        variables: list[str] | None = None,
        output_format: Literal["zarr", "netcdf4"] = "zarr",
    ) -> None:
        """Run the members one after another; the same seed produces the same ensemble."""
        # Created in each call: some methods have their own generator, others draw from torch's.
        torch.manual_seed(seed)
        perturbation = self.perturbation()
        perturbation.seed = seed
        kept = OrderedDict() if variables is None else OrderedDict(variable=np.array(variables))
        run.ensemble(
            *(start_time, num_steps, n_members, self.model, self.data, io, perturbation),
            batch_size=1,
            output_coords=kept,
            verbose=False,
        )
