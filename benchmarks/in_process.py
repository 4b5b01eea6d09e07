"""The same forecast without a server, computed and written as in a scientist's script.

``python -m benchmarks.in_process --format zarr --steps 40 --output PATH`` prints its times as
JSON. Modules, model and data source are loaded and have run once before the clock starts, like
those of the server.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import CHOSEN, SEED, START
from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS, load_fcn3, load_ifs
from workflows.fcn3 import VARIABLES

Step = tuple[int, NDArray[np.float32]]
"""Time index, and fields of shape (variable, lat, lon)."""


def analysis(source: SyntheticIFS, start: datetime) -> NDArray[np.float32]:
    """Return the initial conditions, shape (time, lead_time, variable, lat, lon)."""
    fields: NDArray[np.float32] = source(start, VARIABLES).values[None]
    return fields


def forecast(
    model: SyntheticFCN3, source: SyntheticIFS, state: NDArray[np.float32], steps: int
) -> Iterator[Step]:
    """Yield the steps of a forecast, initial conditions first, with the chosen variables only."""
    chosen = [VARIABLES.index(name) for name in CHOSEN]
    coords = OrderedDict(
        time=np.array([START], dtype="datetime64[ns]"),
        lead_time=np.array([np.timedelta64(0, "h")]),
        variable=np.array(VARIABLES),
        lat=source.lat,
        lon=source.lon,
    )
    model.set_rng(seed=SEED, reset=True)
    for index, (fields, _) in enumerate(model.create_iterator(state, coords)):
        yield index, fields[0, 0][chosen]
        if index == steps:
            return


def write_nothing(
    _path: Path, _source: SyntheticIFS, _steps: int, forecast: Iterator[Step]
) -> None:
    """Only compute."""
    for _ in forecast:
        continue


def write_zarr(path: Path, source: SyntheticIFS, steps: int, forecast: Iterator[Step]) -> None:
    """Write with zarr-python, chunked and uncompressed as Earth2Studio's ZarrBackend does."""
    import zarr

    group = zarr.create_group(path)
    for name, values in _coordinates(source, steps).items():
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=[name]
        )
        array[:] = values
    shape = (steps + 1, len(source.lat), len(source.lon))
    arrays = [
        group.create_array(
            name,
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype="float32",
            compressors=None,
            dimension_names=["time", "lat", "lon"],
        )
        for name in CHOSEN
    ]
    for index, fields in forecast:
        for array, field in zip(arrays, fields, strict=True):
            array[index] = field
    with warnings.catch_warnings():
        # It warns that this is not part of Zarr 3; Earth2Studio does it nevertheless.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def write_netcdf4(path: Path, source: SyntheticIFS, steps: int, forecast: Iterator[Step]) -> None:
    """Write with netCDF4, contiguous and uncompressed as Earth2Studio's NetCDF4Backend does."""
    import netCDF4

    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        for name, values in _coordinates(source, steps).items():
            file.createDimension(name, len(values))
            file.createVariable(name, values.dtype, (name,))[:] = values
        arrays = [file.createVariable(name, "f4", ("time", "lat", "lon")) for name in CHOSEN]
        for index, fields in forecast:
            for array, field in zip(arrays, fields, strict=True):
                array[index] = field


WRITERS: dict[str, Callable[[Path, SyntheticIFS, int, Iterator[Step]], None]] = {
    "none": write_nothing,
    "zarr": write_zarr,
    "netcdf4": write_netcdf4,
}


def _coordinates(source: SyntheticIFS, steps: int) -> dict[str, NDArray[Any]]:
    return {"time": np.arange(steps + 1) * 6, "lat": source.lat, "lon": source.lon}


def main() -> None:
    """Compute one forecast and print its times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=WRITERS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    write = WRITERS[options.format]
    source, model = load_ifs(), load_fcn3()
    state = analysis(source, START)
    warm_up = options.output.with_name(f"{options.output.name}.warm-up")
    write(warm_up, source, 1, forecast(model, source, state, 1))
    del state

    started = time.perf_counter()
    state = analysis(source, START)
    fetched = time.perf_counter()
    write(options.output, source, options.steps, forecast(model, source, state, options.steps))
    ended = time.perf_counter()
    times = {"initial_conditions": fetched - started, "forecast": ended - fetched}
    print(json.dumps(times | {"total": ended - started}))


if __name__ == "__main__":
    main()
