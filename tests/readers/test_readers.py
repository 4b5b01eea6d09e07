"""Libraries of the test environment read results over HTTP, and fail when a result is gone.

`python -m tests.readers` does the same with many more, in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.readers.probes import NETCDF, ZARR
from tests.readers.service import PLANS, WAYS, Service, check_first, check_last, service

READERS = {
    **{
        name: ("zarr", ZARR[name])
        for name in ("zarr-python", "zarr-python + obstore", "xarray + dask")
    },
    "h5netcdf": ("netcdf4", NETCDF["h5netcdf"]),
}
EVERY_READER = pytest.mark.parametrize("reader", READERS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.mark.parametrize("model", PLANS)
@EVERY_READER
def test_values_coordinates_and_times_are_right(results: Service, model: str, reader: str) -> None:
    output_format, probe = READERS[reader]
    plan = PLANS[model].model_copy(update={"output_format": output_format})
    url = results.url(plan, results.completed(plan))
    first, last = probe(url, plan.variables[0])
    check_first(plan, first)
    check_last(plan, last)


@pytest.mark.parametrize("way", WAYS)
@EVERY_READER
def test_a_result_that_disappears_is_not_read_as_missing_values(
    results: Service, reader: str, way: str
) -> None:
    output_format, probe = READERS[reader]
    plan = PLANS["fcn3"].model_copy(update={"output_format": output_format})
    execution_id = results.completed(plan)
    parts = probe(results.url(plan, execution_id), plan.variables[0])
    check_first(plan, next(parts))
    with results.without(plan, execution_id, way), pytest.raises(Exception, match=r"\d{3}|[Nn]ot"):
        next(parts)


@EVERY_READER
def test_a_result_that_is_not_there_cannot_be_opened(results: Service, reader: str) -> None:
    output_format, probe = READERS[reader]
    plan = PLANS["fcn3"].model_copy(update={"output_format": output_format})
    for execution_id in (results.running(plan), "exec_1_00000000"):
        with pytest.raises(Exception, match=r"\d{3}|[Nn]ot"):
            next(probe(results.url(plan, execution_id), plan.variables[0]))
