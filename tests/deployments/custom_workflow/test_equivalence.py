"""Random classes write the same dataset with our backends as with Earth2Studio's, or fail.

``EQUIVALENCE_EXAMPLES=200`` tries that many classes in each format; by default a few.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from deployments.custom_workflow.write_behind import WriteBehind
from workflows.base import OutputFormat

pytest.register_assert_rewrite("tests.deployments.custom_workflow.outputs")

from tests.deployments.custom_workflow.outputs import (  # noqa: E402
    close,
    dataset,
    described,
    new_backend,
    new_output,
)

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
]

EXAMPLES = int(os.environ.get("EQUIVALENCE_EXAMPLES", "8"))

COORDS = {
    "ensemble": np.arange(3),
    "time": np.array(["2025-01-01T06", "2025-01-02T12"], "datetime64[ns]"),
    "lead_time": np.arange(3) * np.timedelta64(6, "h"),
    "variable": np.array(["t2m", "z500"]),
    "station": np.array([10, 10, 20]),
    "lat": np.linspace(60, -60, 4),
    "lon": np.array([0, 90, 180, 270], np.float32),
    "storm": np.empty(0, int),
}
NAMES = ["t2m", "z500", "tp", "mask"] * 3 + ["lat"]
FILL = -12345.0
"""What Earth2Studio's ZarrBackend holds where nothing was written, to count it."""


@dataclass
class Op:
    """One call of a class."""

    kind: Literal["add", "write", "own", "root", "attribute", "copy"]
    names: list[str]
    dims: list[str]
    places: dict[str, list[int]]
    dtype: str
    seed: int
    with_data: bool

    def coords(self, whole: bool = False) -> dict[str, Any]:
        return {
            dim: COORDS[dim] if whole or dim not in self.places else COORDS[dim][self.places[dim]]
            for dim in self.dims
        }

    def values(self, shape: Any, offset: int = 0) -> Any:
        """Return values of which some are NaN."""
        random = np.random.default_rng(self.seed + offset)
        values = random.integers(-64, 64, shape) / 4
        if self.dtype.startswith("f"):
            values = np.where(random.random(shape) < 0.2, np.nan, values)
        return np.asarray(values, self.dtype)

    def __call__(self, io: Any) -> None:
        import torch

        whole, coords = self.coords(whole=True), self.coords()
        shape = [len(values) for values in coords.values()]
        match self.kind:
            case "add":
                data = None
                if self.with_data:
                    full = [len(values) for values in whole.values()]
                    data = [
                        torch.from_numpy(self.values(full, i)) for i, _ in enumerate(self.names)
                    ]
                io.add_array(whole, self.names, data=data)
            case "write":
                values = [torch.from_numpy(self.values(shape, i)) for i, _ in enumerate(self.names)]
                io.write(values, coords, self.names)
            case "own":
                own = new_array(io, f"own_{self.names[0]}", whole, self.dtype)
                own[...] = self.values(own.shape)
            case "root":
                array = io.root[self.names[0]]
                key = tuple(slice(0, max(1, size - self.seed % 2)) for size in array.shape)
                array[key] = self.values(
                    tuple(len(range(*k.indices(s))) for k, s in zip(key, array.shape, strict=True))
                )
            case "attribute":
                set_attribute(io.root[self.names[0]], "note", self.seed)
            case "copy":
                values, _ = io.read(coords, self.names[0])
                io.write(values, coords, self.names[-1])


def new_array(io: Any, name: str, coords: dict[str, Any], dtype: str) -> Any:
    """Create an array without the backend's help."""
    shape = [len(io.coords[dim]) for dim in coords]
    if hasattr(io.root, "createVariable"):
        return io.root.createVariable(name, dtype, tuple(coords))
    return io.root.create_array(name, shape=shape, dtype=dtype, dimension_names=list(coords))


def set_attribute(array: Any, name: str, value: Any) -> None:
    if hasattr(array, "setncattr"):
        array.setncattr(name, value)
    else:
        array.attrs[name] = value


@st.composite
def operations(draw: st.DrawFn) -> Op:
    some_dims = st.sampled_from([*COORDS] if not draw(st.integers(0, 9)) else [*COORDS][:-1])
    dims = draw(st.lists(some_dims, min_size=1, max_size=4, unique=True))
    places = {}
    for dim in dims:
        size = len(COORDS[dim])
        if size and draw(st.booleans()):
            some = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True)
            # Mostly in order: anything else is refused.
            places[dim] = draw(st.one_of(some.map(sorted), some.map(sorted), some))
    return Op(
        kind=draw(
            st.sampled_from(
                ["add", "add", "write", "write", "write", "own", "root", "attribute", "copy"]
            )
        ),
        names=draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)),
        dims=dims,
        places=places,
        dtype=draw(st.sampled_from(["f4", "f4", "f8", "i4", "i8"])),
        seed=draw(st.integers(0, 1000)),
        with_data=draw(st.booleans()),
    )


@st.composite
def programs(draw: st.DrawFn) -> list[Op]:
    """Return the calls of a class: an array, and then mostly calls that concern it."""
    first = draw(operations())
    first.kind = "add"
    rest = draw(st.lists(operations(), min_size=1, max_size=6))
    for op in rest:
        if draw(st.integers(0, 4)):
            op.dims = first.dims
            op.places = {dim: place for dim, place in op.places.items() if dim in first.dims}
            op.names = first.names[: len(op.names)]
    return [first, *rest]


def run(io: Any, program: list[Op]) -> Exception | None:
    """Call a backend; return the error that ends the class."""
    for op in program:
        try:
            op(io)
        except Exception as error:
            return error
    return None


@contextmanager
def filled(path: Path, output_format: OutputFormat, fill: float) -> Iterator[Any]:
    """Open Earth2Studio's backend, with another fill value than 0 where it would have that."""
    backend = new_backend(path, output_format)
    if output_format == "zarr":
        create = type(backend.root).create_array

        class Root(type(backend.root)):  # type: ignore[misc]
            def create_array(self, name: str, **options: Any) -> Any:
                if np.dtype(options["dtype"]).kind == "f":
                    options["fill_value"] = fill
                return create(self, name, **options)

        backend.root = Root(backend.root._async_group)
    yield backend
    with suppress(RuntimeError):  # HDF5 does not close a file after some errors
        close(backend)


def readable(path: Path) -> xr.Dataset | None:
    """Return a dataset, with NaN for netCDF4's own fill values; None if xarray cannot read it."""
    try:
        opened = dataset(path)
    except ValueError:
        return None
    for each in opened.data_vars.values():
        if path.is_file() and each.dtype.kind == "f":
            fill = netCDF4.default_fillvals[each.dtype.str[1:]]
            each.values = np.where(each.values == each.dtype.type(fill), np.nan, each.values)
    return opened


def written(path: Path) -> dict[str, float]:
    """Return the fraction of each variable of a dataset that is not the fill value."""
    opened = xr.open_zarr(path, consolidated=False) if path.is_dir() else None
    if opened is None:
        opened = xr.open_dataset(path, engine="netcdf4", mask_and_scale=False)
        fills = {
            name: netCDF4.default_fillvals[each.dtype.str[1:]]
            for name, each in opened.data_vars.items()
        }
    else:
        fills = dict.fromkeys(opened.data_vars, FILL)
    with opened:
        return {
            str(name): float((each.values != fills[name]).mean()) if each.size else 1.0
            for name, each in opened.data_vars.items()
        }


@pytest.mark.parametrize("output_format", ["zarr", "netcdf4"])
@given(program=programs())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_random_classes_write_what_earth2studio_writes(
    output_format: OutputFormat, program: list[Op]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome = compare(Path(folder), output_format, program)
    event(outcome)  # `--hypothesis-show-statistics` counts them


def compare(folder: Path, output_format: OutputFormat, program: list[Op]) -> str:
    writer = WriteBehind(2, 1 << 20) if output_format == "zarr" else None
    ours = new_output(folder, output_format, writer)
    try:
        error = run(ours, program)
        with filled(folder / "theirs", output_format, np.nan) as theirs:
            their_error = run(theirs, program)
        if error is not None:
            assert str(error), repr(error)
            return "both fail" if their_error is not None else f"fails: {type(error).__name__}"
        if their_error is not None:
            # Its ZarrBackend cannot write to arrays without elements.
            assert any("storm" in op.dims for op in program), repr(their_error)
            return "only Earth2Studio fails"
        ours.finish()
        expected = readable(folder / "theirs")
        if expected is None:
            return "unreadable"
        got = readable(ours.path)
        assert got is not None
        xr.testing.assert_equal(got, expected)
        assert described(got) == described(expected)
        for name in expected.variables:
            assert got[name].attrs == expected[name].attrs
        if any(op.kind == "copy" for op in program):
            return "equal"  # a copy of unwritten elements may count as written or not
        with filled(folder / "counted", output_format, FILL) as counted:
            run(counted, program)
        assert ours.coverage.fractions == written(folder / "counted")
        return "equal"
    finally:
        ours.discard()
