"""Clients' paths: which file they open, and which they must not."""

import os
import resource
from pathlib import Path

import pytest

from serve_app.files.paths import (
    ForbiddenPath,
    InvalidPath,
    ResultsUnavailable,
    _open_without_symlinks,
    open_below,
    translate_os_errors,
)
from workflows.errors import Earth2ServeError, ResultsNotFound


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    (root / "store.zarr" / "t2m" / "c").mkdir(parents=True)
    (root / "store.zarr" / "t2m" / "c" / "0").write_bytes(b"chunk")
    (root / "results.nc").write_bytes(b"netcdf")
    (root / "wf:exec_1").write_bytes(b"zip")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "results-of-another").mkdir()
    (tmp_path / "results-of-another" / "f").write_bytes(b"secret")
    return root


@pytest.mark.parametrize(
    "relative",
    ["results.nc", "./results.nc", "store.zarr/t2m/c/0", "store.zarr//t2m/./c/0", "wf:exec_1"],
)
def test_paths_to_files(root: Path, relative: str) -> None:
    with open_below(root, relative) as file:
        assert file.read() == (root / relative).read_bytes()


@pytest.mark.parametrize(
    "relative",
    [
        "..",
        "../secret",
        "store.zarr/../../secret",
        "store.zarr/../results.nc",
        "a/b/c/../../../../secret",
        "/etc/passwd",
        "//etc/passwd",
        "..\\secret",
        "store.zarr\\..\\..\\secret",
        "\\\\host\\share",
        "../results-of-another/f",
    ],
)
def test_paths_out_of_the_results_are_forbidden(root: Path, relative: str) -> None:
    refused(ForbiddenPath, root, relative)


@pytest.mark.parametrize(
    "relative",
    [
        "",
        ".",
        "/".join(["."] * 100),
        "missing",
        "store.zarr",
        "store.zarr/",
        "results.nc/",
        "results.nc/below",
        "store.zarr/t2m/missing/0",
        "%2e%2e/secret",
        "..%2fsecret",
        "%2Fetc%2Fpasswd",
        "...",
        "~root",
        "C:/secret",
        "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/secret",
        "\udcff",
        "/".join(["d"] * 2000).removeprefix("/"),
    ],
)
def test_paths_that_name_no_file(root: Path, relative: str) -> None:
    refused(ResultsNotFound, root, relative)


@pytest.mark.parametrize(
    "relative",
    [
        "results.nc\0",
        "\0",
        "a\nb",
        "a\x7f",
        "a\x85",
        "a" * 256,
        "é" * 128,
        "store.zarr/" + "a" * 300 + "/0",
        "a/" * 2500,
        "\ud800",
    ],
)
def test_invalid_paths(root: Path, relative: str) -> None:
    refused(InvalidPath, root, relative)


def test_a_path_that_is_too_long_with_its_root(root: Path) -> None:
    deep = root.joinpath(*["r" * 200] * 5)
    refused(InvalidPath, deep, "/".join(["d" * 200] * 19))


def test_symlinks(root: Path, tmp_path: Path) -> None:
    (root / "inside").symlink_to("store.zarr/t2m")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "out-relative").symlink_to("../results-of-another")
    (root / "out-dangling").symlink_to("/nowhere/at/all")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    with open_below(root, "inside/c/0") as file:
        assert file.read() == b"chunk"
    for relative in ["out", "out-relative/f", "out-relative", "out-dangling", "out-dangling/x"]:
        refused(ForbiddenPath, root, relative)
    for relative in ["dangling", "loop", "loop/x"]:
        refused(ResultsNotFound, root, relative)


def test_the_root_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    with open_below(tmp_path / "link", "results.nc") as file:
        assert file.read() == b"netcdf"
    refused(ForbiddenPath, tmp_path / "link", "../secret")


def test_the_root_may_be_missing(tmp_path: Path) -> None:
    refused(ResultsNotFound, tmp_path / "missing", "results.nc")


def test_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo")
    refused(ResultsNotFound, root, "fifo")


def test_a_symlink_that_replaces_a_located_file_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "swapped").symlink_to(tmp_path / "results-of-another")
    (root / "file").symlink_to(tmp_path / "secret")
    for names in (["swapped", "f"], ["file"]):
        with pytest.raises(ResultsNotFound), translate_os_errors("x"):
            _open_without_symlinks(str(root), names)


def test_all_descriptors_are_closed(root: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for relative in ["store.zarr/t2m/c/0", "store.zarr", "missing/x", "results.nc/x"]:
        try:
            open_below(root, relative).close()
        except ResultsNotFound:
            continue
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_that_cannot_be_opened_now_is_unavailable(root: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(ResultsUnavailable) as caught:
            open_below(root, "results.nc")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert str(caught.value) == "'results.nc' cannot be read now: Too many open files"


def refused(error_class: type[Earth2ServeError], root: Path, relative: str) -> None:
    with pytest.raises(error_class) as caught:
        open_below(root, relative)
    assert str(root) not in str(caught.value)
    assert str(root.resolve()) not in str(caught.value)
