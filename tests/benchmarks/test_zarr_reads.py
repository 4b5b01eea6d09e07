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


class Recording(SimpleHTTPRequestHandler):
    requested: list[str] = []

    def log_message(self, format: str, *args: object) -> None:
        self.requested.append(self.path)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    dims = ("time", "lead_time", "lat", "lon")
    fields = np.ones((1, 3, 4, 8), dtype="f4")
    dataset = xr.Dataset({"t2m": (dims, fields), "z500": (dims, fields)})
    chunks = {name: {"chunks": (1, 1, 4, 8)} for name in dataset}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are not part of Zarr 3
        dataset.to_zarr(tmp_path / "results.zarr", encoding=chunks, consolidated=True)
    Recording.requested.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Recording, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_one_field_and_a_whole_variable_are_read(base: str) -> None:
    read = read_zarr(f"{base}/results.zarr", "t2m", "z500")
    assert read.shape == (1, 3, 4, 8)
    assert read.nbytes == 3 * 4 * 8 * 4
    chunks = sorted(path for path in Recording.requested if "/c/" in path)
    middle = "/results.zarr/t2m/c/0/1/0/0"
    assert chunks == [middle, *(f"/results.zarr/z500/c/0/{n}/0/0" for n in range(3))]


def test_nothing_is_cached_from_the_previous_run(base: str) -> None:
    read_zarr(f"{base}/results.zarr", "t2m", "z500")
    first = sorted(Recording.requested)
    Recording.requested.clear()
    read_zarr(f"{base}/results.zarr", "t2m", "z500")
    assert sorted(Recording.requested) == first
