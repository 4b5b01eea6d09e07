import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import xarray as xr

from benchmarks.zarr_reads import read_zarr


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, format: str, *args: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    dims = ("time", "lead_time", "lat", "lon")
    fields = np.ones((1, 3, 4, 8), dtype="f4")
    dataset = xr.Dataset({"t2m": (dims, fields), "z500": (dims, fields)})
    chunks = {name: {"chunks": (1, 1, 4, 8)} for name in dataset}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are not part of Zarr 3
        dataset.to_zarr(tmp_path / "results.zarr", encoding=chunks, consolidated=True)
    Quiet.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_one_field_and_all_of_a_variable_are_read(base: str) -> None:
    read = read_zarr(f"{base}/results.zarr", "t2m", "z500")
    assert read.shape == (1, 3, 4, 8)
    assert read.nbytes == 3 * 4 * 8 * 4
    chunks = sorted(path for path in Quiet.asked if "/c/" in path)
    middle = "/results.zarr/t2m/c/0/1/0/0"
    assert chunks == [middle, *(f"/results.zarr/z500/c/0/{n}/0/0" for n in range(3))]


def test_nothing_is_left_from_the_run_before(base: str) -> None:
    read_zarr(f"{base}/results.zarr", "t2m", "z500")
    first = sorted(Quiet.asked)
    Quiet.asked.clear()
    read_zarr(f"{base}/results.zarr", "t2m", "z500")
    assert sorted(Quiet.asked) == first
