"""Zarr output: the contract of all outputs, and checksums of its chunks."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from deployments.custom_workflow.backend import Output
from deployments.custom_workflow.write_behind import WriteBehind

pytest.register_assert_rewrite("tests.deployments.custom_workflow.outputs")

from tests.deployments.custom_workflow.outputs import (  # noqa: E402
    ENSEMBLE,
    FORECAST,
    LAT,
    MAP,
    TIME,
    VARIABLES,
    LateWriter,
    NewOutput,
    OutputContract,
    at,
    dataset,
    new_output,
    set_up_like_earth2studio,
    tensor,
)

pytestmark = [
    pytest.mark.models,
    # Zarr warns about strings and times, and about consolidated metadata.
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
]


class TestContract(OutputContract):
    output_format = "zarr"

    # Only Zarr is written behind the loop.

    def test_progress_counts_chunks_on_disk(self, io: Output) -> None:
        io.add_array(FORECAST, "t2m")
        io.write(tensor(FORECAST), FORECAST, "t2m")
        assert io.coverage.progress == (0, 3)
        io.flush()
        assert io.coverage.progress == (3, 3)

    def test_finish_raises_the_failure_of_a_write(self, new: NewOutput) -> None:
        class FullDisk(LateWriter):
            def flush(self) -> None:
                if self.pending:
                    raise OSError("no space left")

        io = new(FullDisk())
        io.add_array(FORECAST, "t2m")
        io.write(tensor(FORECAST), FORECAST, "t2m")
        with pytest.raises(OSError, match="no space left"):
            io.finish()


@pytest.fixture
def io(tmp_path: Path) -> Output:
    return new_output(tmp_path, "zarr")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def unchanged_clock(path: Path) -> Iterator[None]:
    """Change a file without changing its modification time."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_checksums_of_whole_chunks_are_known(tmp_path: Path) -> None:
    writer = WriteBehind(2, 1 << 12)
    io = new_output(tmp_path, "zarr", writer)
    io.add_array(ENSEMBLE, VARIABLES)
    io.add_array({"ensemble": np.arange(2)}, "seed", data=tensor({"ensemble": np.arange(2)}))
    for round_ in range(3):
        io.write([tensor(ENSEMBLE, round_), tensor(ENSEMBLE, 10 + round_)], ENSEMBLE, VARIABLES)
    known = io.finish()

    assert {str(path.relative_to(io.path)) for path in known} == {
        f"{name}/c/{member}/{step}/0/0"
        for name in VARIABLES
        for member in range(2)
        for step in range(3)
    }
    for path, written in known.items():
        assert written.size == path.stat().st_size == 5 * 8 * 4
        assert written.sha256 == sha256(path)


def test_checksums_of_changed_chunks_are_not_known(io: Output) -> None:
    names = ["untouched", "by hand", "in part", "by others", "removed"]
    io.add_array(FORECAST, names)
    io.write([tensor(FORECAST, seed) for seed in range(5)], FORECAST, names)
    io.flush()
    paths = {name: io.path / name / "c/0/1/0/0" for name in names}
    with unchanged_clock(paths["by hand"]):
        io.root["by hand"][0, 1, 2] = 5.0
    with unchanged_clock(paths["in part"]):
        band = at(FORECAST, lead_time=[1], lat=[2])
        io.write(tensor(band), band, "in part")
    at_first = paths["by others"].stat().st_mtime_ns
    paths["by others"].write_bytes(bytes(5 * 8 * 4))
    os.utime(paths["by others"], ns=(at_first, at_first + 1))
    paths["removed"].unlink()
    known = io.finish()

    assert set(paths.values()) & set(known) == {paths["untouched"]}
    # Their other steps are unchanged.
    for name in ("untouched", "in part", "by others", "removed"):
        assert io.path / name / "c/0/0/0/0" in known
    assert all(written.sha256 == sha256(path) for path, written in known.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda root, step: np.copyto(np.memmap(root / f"t2m/c/{step}/0/0", "<f4", "r+"), 1.0),
        lambda root, step: zarr.open_array(root / "t2m").__setitem__(step, 1.0),
    ],
    ids=["in place", "by replacing the file"],
)
def test_a_change_right_after_a_write_is_noticed(io: Output, change: Any) -> None:
    coords = {"lead_time": np.arange(20), **MAP}
    io.add_array(coords, "t2m")
    root = io.store.root
    for step in range(20):
        here = at(coords, lead_time=[step])
        start_ns = time.time_ns()
        io.write(tensor(here), here, "t2m")
        # On many kernels the change would have the same time as the write.
        assert (root / f"t2m/c/{step}/0/0").stat().st_mtime_ns < start_ns - 1_000_000_000
        change(root, step)
    assert io.finish() == {}
    assert (dataset(io.path).t2m == 1).all()


def test_a_file_with_the_time_of_the_one_that_it_replaces_is_noticed(io: Output) -> None:
    io.add_array(MAP, "t2m")
    io.write(tensor(MAP), MAP, "t2m")
    root = io.store.root
    chunk = root / "t2m/c/0/0"
    shutil.copy2(chunk, root.parent / "copy")
    with unchanged_clock(root.parent / "copy"):
        (root.parent / "copy").write_bytes(bytes(5 * 8 * 4))
    (root.parent / "copy").replace(chunk)
    assert io.finish() == {}


def test_the_checksum_of_a_rewritten_chunk_is_known(io: Output) -> None:
    io.add_array(FORECAST, "t2m")
    io.write(tensor(FORECAST, 1), FORECAST, "t2m")
    io.root["t2m"][...] = 0.0
    step = at(FORECAST, lead_time=[1])
    io.write(tensor(step), step, "t2m")
    known = io.finish()
    assert {path: written.sha256 for path, written in known.items()} == {
        io.path / "t2m/c/0/1/0/0": hashlib.sha256(tensor(step).numpy().data).hexdigest()
    }


def test_metadata_are_consolidated(io: Output) -> None:
    set_up_like_earth2studio(io)
    # Everything after the class's own consolidation.
    io.add_array(MAP, "orography", data=tensor(MAP))
    io.root["t2m"].units = "K"
    io.root.title = "a forecast"
    io.finish()

    with xr.open_zarr(io.path, consolidated=True) as opened:
        assert set(opened.variables) == set(io)
        assert opened.t2m.attrs["units"] == "K"
        assert opened.title == "a forecast"
        np.testing.assert_array_equal(opened.orography, tensor(MAP))
    group = zarr.open_group(io.path, mode="r", use_consolidated=True)
    plain = zarr.open_group(io.path, mode="r", use_consolidated=False)
    for name in io:
        assert dict(group[name].attrs) == dict(plain[name].attrs)
        assert group[name].shape == plain[name].shape


def test_an_array_created_by_the_class_keeps_attributes(io: Output) -> None:
    io.add_array(MAP, "t2m")
    io.root.create_array("own", shape=(5,), dtype="f4", dimension_names=["lat"])
    first, second = io.root["own"], io.root["own"]
    first.units = "K"
    second.long_name = "temperature"
    first[...] = LAT
    io.finish()
    assert dataset(io.path).own.attrs == {"units": "K", "long_name": "temperature"}
    np.testing.assert_array_equal(dataset(io.path).own, LAT)


def test_a_chunk_is_a_map(io: Output) -> None:
    io.add_array(ENSEMBLE, "t2m")
    io.add_array({"time": TIME, "level": np.arange(13), **MAP}, "t")
    assert io["t2m"].chunks == (1, 1, 5, 8)
    assert io["t"].chunks == (1, 1, 5, 8)
    assert io.chunks["time"] == 1
    assert io.chunks["lat"] == 5
    assert np.isnan(io["t2m"].fill_value)


def test_no_coordinate_has_the_fill_value(io: Output) -> None:
    """Readers that know no CF take it for missing."""
    io.add_array(ENSEMBLE, "t2m")
    for name in ENSEMBLE:
        coordinate = io.root[name]
        assert not (coordinate[...] == coordinate.fill_value).any(), name


def test_a_chunk_in_folders_of_a_removed_array_is_not_written(io: Output) -> None:
    io.add_array(FORECAST, "t2m")
    shutil.rmtree(io.path / "t2m")
    io.write(tensor(FORECAST), FORECAST, "t2m")
    with pytest.raises(FileNotFoundError):
        io.flush()
    assert not (io.path / "t2m").exists()


def test_a_chunk_of_nan_has_a_file(io: Output) -> None:
    import torch

    io.add_array(FORECAST, VARIABLES)
    nothing = torch.full((1, 3, 5, 8), torch.nan)
    io.write(nothing, FORECAST, "t2m")
    band = at(FORECAST, lat=[0])
    io.write(nothing[:, :, :1], band, "z500")
    io.finish()
    for name in VARIABLES:
        assert (io.path / name / "c/0/2/0/0").stat().st_size == 5 * 8 * 4


def test_a_scalar_is_written(io: Output) -> None:
    """Earth2Studio's own backend fails here."""
    io.add_array({}, "a", data=tensor({}, 1))
    io.add_array({}, "b")
    io.write(tensor({}, 2), {}, "b")
    io.finish()
    assert dataset(io.path).a == tensor({}, 1)
    assert dataset(io.path).b == tensor({}, 2)


def test_an_array_is_replaced_on_request(tmp_path: Path) -> None:
    writer = LateWriter()
    io = new_output(tmp_path, "zarr", writer)
    io.add_array(FORECAST, "t2m")
    io.write(tensor(FORECAST), FORECAST, "t2m")
    io.add_array(FORECAST, "t2m", overwrite=True)
    io.flush()
    assert np.isnan(io["t2m"][...]).all()

    step = at(FORECAST, lead_time=[1])
    io.write(tensor(step), step, "t2m")
    known = io.finish()
    assert list(known) == [io.path / "t2m/c/0/1/0/0"]
    assert io.coverage.fractions == {"t2m": 1 / 3}
    np.testing.assert_array_equal(dataset(io.path).t2m[:, [1]], tensor(step))


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": zarr.codecs.ZstdCodec()},
        {"filters": zarr.codecs.TransposeCodec(order=(3, 2, 1, 0))},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
        {"shards": (1, 3, 5, 8)},
    ],
)
def test_arrays_with_codecs_are_written_through_them(io: Output, options: dict[str, Any]) -> None:
    io.add_array(FORECAST, "t2m", **options)
    for step in range(3):
        part = at(FORECAST, lead_time=[step])
        io.write(tensor(part, step), part, "t2m")
    # Zarr-Python wrote these files, so their checksums are unknown.
    assert io.finish() == {}
    assert io.coverage.fractions == {"t2m": 1.0}
    for step in range(3):
        part = at(FORECAST, lead_time=[step])
        np.testing.assert_array_equal(dataset(io.path).t2m[:, [step]], tensor(part, step))


def test_a_full_disk_is_reported(io: Output) -> None:
    large = {"lat": np.arange(64), "lon": np.arange(64)}
    io.add_array(large, "t2m")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # This limit acts like a full disk: a part of the file is written first.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        io.write(tensor(large), large, "t2m")
        with pytest.raises(OSError, match="File too large"):
            io.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_setting_up_does_not_stop_writing_behind(tmp_path: Path) -> None:
    """Metadata of the store may be used; only who knows its folder can write unnoticed."""
    writer = LateWriter()
    io = new_output(tmp_path, "zarr", writer)
    set_up_like_earth2studio(io)
    io.root["t2m"].units = "K"
    assert io.store is not None
    io.write([tensor(ENSEMBLE), tensor(ENSEMBLE)], ENSEMBLE, VARIABLES)
    assert len(writer.pending) == 12

    assert io.store.root == io.path
    assert not writer.pending
    io.write([tensor(ENSEMBLE), tensor(ENSEMBLE)], ENSEMBLE, VARIABLES)
    assert not writer.pending


@pytest.mark.parametrize(
    "use",
    [
        lambda store, io: zarr.open_group(store, mode="r+")["t2m"][...],
        lambda store, io: zarr.open_group(store, mode="r+")["t2m"].oindex[[0], :],
        lambda store, io: io.root["t2m"].get_basic_selection(slice(0, 1)),
        lambda store, io: str(store),
    ],
)
def test_the_store_shows_pending_writes(tmp_path: Path, use: Any) -> None:
    writer = LateWriter()
    io = new_output(tmp_path, "zarr", writer)
    io.add_array(FORECAST, "t2m")
    store = io.store
    io.write(tensor(FORECAST), FORECAST, "t2m")
    assert writer.pending
    use(store, io)
    assert not writer.pending


def test_an_array_that_the_class_removed_is_added_again(io: Output) -> None:
    io.add_array(FORECAST, VARIABLES)
    io.write([tensor(FORECAST), tensor(FORECAST)], FORECAST, VARIABLES)
    del io.root["t2m"]
    assert "t2m" not in io
    step = at(FORECAST, lead_time=[1])
    io.write(tensor(step), step, "z500")
    io.add_array(FORECAST, "t2m")
    io.write(tensor(step, 3), step, "t2m")
    known = io.finish()
    assert len(known) == 4
    assert io.coverage.fractions == {"t2m": 1 / 3, "z500": 1.0}
    np.testing.assert_array_equal(dataset(io.path).t2m[:, [1]], tensor(step, 3))
