"""The folder of a run becomes the result: complete, once, and without files from elsewhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments.custom_workflow.run_folder import RunFolder
from deployments.results.disk import DiskStorage
from deployments.results.manifest import Listing
from deployments.results.store import ResultsStore
from deployments.results.work import StoredObject
from workflows.errors import StageFailed, StaleConductor
from workflows.manifest import CHECKSUMS, OutputFile, Totals

ID = "exec_1_00000000"
WORKFLOW = "storms"


class Server:
    """The folders of a server, and the runs that fill them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = ResultsStore(DiskStorage(root / "results", root / "work"))
        self.result = root / "results" / WORKFLOW / ID

    def run(self, files: Mapping[str, bytes] | None = None, fence: int = 1) -> RunFolder:
        folder = RunFolder(self.root / "results", self.root / "work", WORKFLOW, ID, fence)
        for name, content in (files or {}).items():
            path = folder.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def purge(self) -> None:
        self.store.purge(WORKFLOW, ID)

    def delivered(self) -> dict[str, bytes]:
        files = (path for path in self.result.rglob("*") if path.is_file())
        return {path.relative_to(self.result).as_posix(): path.read_bytes() for path in files}

    def left(self) -> list[Path]:
        return [path for path in (self.root / "results").rglob("*") if ID in path.name]

    def verify(self) -> list[str]:
        """Return the names of the files that sha256sum finds intact."""
        check = subprocess.run(
            ["sha256sum", "--strict", "-c", CHECKSUMS], cwd=self.result, capture_output=True
        )
        assert check.returncode == 0, check.stderr
        return [line.removesuffix(": OK") for line in check.stdout.decode().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


FILES = {
    "notes.txt": b"0123456789",
    "empty.bin": b"",
    "tracks/ä storm  .csv": b"a,b",
    "results.zarr/zarr.json": b"{}",
    "results.zarr/t2m/zarr.json": b"{}",
    "results.zarr/t2m/c.0.0": bytes(range(256)),
}


def test_everything_in_the_folder_is_delivered_with_size_and_checksum(server: Server) -> None:
    folder = server.run(FILES)
    described = folder.deliver({})

    assert not folder.path.exists()
    delivered = server.delivered()
    checksums = delivered.pop(CHECKSUMS)
    assert delivered == FILES
    listed = {file.path: (file.size, file.sha256) for file in described.listing.output_files}
    assert len(listed) == len(described.listing.output_files)
    assert listed == {
        f"{ID}/{name}": (len(content), hashlib.sha256(content).hexdigest())
        for name, content in {**FILES, CHECKSUMS: checksums}.items()
    }
    assert described.listing.totals == Totals(
        files=len(FILES) + 1,
        bytes=sum(map(len, FILES.values())) + len(checksums),
        listed=len(FILES) + 1,
        truncated=False,
    )
    assert described.warnings == []
    assert sorted(server.verify()) == sorted(FILES)


def test_files_with_known_checksums_are_not_read_again(server: Server) -> None:
    folder = server.run(FILES)
    chunk = "results.zarr/t2m/c.0.0"
    known = {folder.path / chunk: StoredObject("another key", 5, "f" * 64)}
    described = folder.deliver(known)
    assert (
        OutputFile(path=f"{ID}/{chunk}", size=5, sha256="f" * 64) in described.listing.output_files
    )
    assert f"{'f' * 64}  {chunk}\n" in (server.result / CHECKSUMS).read_text()


@pytest.mark.parametrize(
    ("files", "is_empty"),
    [
        ({}, True),
        ({"results.zarr/zarr.json": b"{}"}, True),
        ({"results.nc": b"CDF"}, True),
        ({"results.zarr/zarr.json": b"{}", "notes.txt": b""}, False),
        ({"results.csv": b"a"}, False),
    ],
)
def test_a_folder_with_only_the_output_is_empty(
    server: Server, files: dict[str, bytes], is_empty: bool
) -> None:
    assert server.run(files).is_empty == is_empty


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


STRANGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a link to a file elsewhere": ("x", link("../../../../secret"), "leads out"),
    "a link to a folder elsewhere": ("x", link("../../../../folder"), "leads out"),
    "an absolute link elsewhere": ("x", link("/etc/hostname"), "leads out"),
    "a broken link": ("x", link("nothing"), "a broken link"),
    "a link to itself": ("x", link("x"), "a broken link"),
    "a broken link elsewhere": ("x", link("../../../../nothing"), "leads out"),
    "a link to a folder": ("x", link("tracks"), "not a regular file"),
    "a FIFO": ("x", lambda path: os.mkfifo(path), "not a regular file"),
    "a line break": ("a\nb", Path.touch, "a?b: its name has control characters"),
    "a backslash": ("a\\b", Path.touch, "its name has control characters or a backslash"),
    "no UTF-8": (os.fsdecode(b"a\xff"), Path.touch, "a\ufffd: its name is not UTF-8"),
    "a folder of no UTF-8": (
        os.fsdecode(b"b\xff/x"),
        lambda path: path.parent.mkdir() or path.touch(),  # type: ignore[func-returns-value]
        "b\ufffd/x: its name is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_undeliverable_files_are_omitted_with_a_warning(server: Server, case: str) -> None:
    (server.root / "secret").write_bytes(b"secret")
    (server.root / "folder").mkdir()
    (server.root / "folder" / "secret").write_bytes(b"secret")
    name, make, reason = STRANGE[case]
    folder = server.run({"tracks/a.csv": b"a"})
    make(folder.path / name)

    described = folder.deliver({})
    (warning,) = described.warnings
    assert reason in warning
    listed = [file.path for file in described.listing.output_files]
    assert listed == [f"{ID}/{CHECKSUMS}", f"{ID}/tracks/a.csv"]
    assert server.verify() == ["tracks/a.csv"]


def test_the_results_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    server = Server(tmp_path / "data")
    folder = server.run({"tracks/a.csv": b"abc"})
    (folder.path / "latest.csv").symlink_to("tracks/a.csv")
    assert folder.deliver({}).warnings == []
    assert server.delivered().keys() == {"tracks/a.csv", "latest.csv", CHECKSUMS}


def test_absolute_links_are_not_delivered(server: Server) -> None:
    folder = server.run({"a.csv": b"a"})
    (folder.path / "x").symlink_to(folder.path / "a.csv")
    (warning,) = folder.deliver({}).warnings
    assert warning.startswith("x: an absolute link")


def test_a_link_inside_the_folder_is_delivered_as_its_target(server: Server) -> None:
    folder = server.run({"tracks/a.csv": b"abc"})
    (folder.path / "latest.csv").symlink_to("tracks/a.csv")
    described = folder.deliver({})
    assert described.warnings == []
    assert described.listing.output_files[0] == OutputFile(
        path=f"{ID}/latest.csv", size=3, sha256=hashlib.sha256(b"abc").hexdigest()
    )
    assert (server.result / "latest.csv").read_bytes() == b"abc"
    assert sorted(server.verify()) == ["latest.csv", "tracks/a.csv"]


def read_fifo(path: Path) -> None:
    os.mkfifo(path)
    # With a reader, so that opening it for writing does not block.
    os.open(path, os.O_RDONLY | os.O_NONBLOCK)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"theirs"),
        lambda path: path.mkdir(),
        read_fifo,
        lambda path: path.symlink_to("../../../../secret"),
    ],
    ids=["file", "folder", "FIFO", "link"],
)
def test_a_users_file_named_like_the_checksums_is_refused(
    server: Server, make: Callable[[Path], object]
) -> None:
    (server.root / "secret").write_bytes(b"secret")
    folder = server.run({"a.csv": b"a"})
    make(folder.path / CHECKSUMS)
    with pytest.raises(StageFailed, match=r"checksums\.sha256 is reserved"):
        folder.deliver({})
    assert not server.result.exists()
    assert (server.root / "secret").read_bytes() == b"secret"


def test_a_file_of_that_name_in_a_subfolder_is_delivered(server: Server) -> None:
    server.run({f"tracks/{CHECKSUMS}": b"theirs"}).deliver({})
    assert server.delivered()[f"tracks/{CHECKSUMS}"] == b"theirs"


def test_a_superseded_conductor_gets_no_folder(server: Server) -> None:
    server.run(fence=12)
    with pytest.raises(StaleConductor, match="3 was superseded by 12"):
        server.run(fence=3)


def test_a_superseded_run_delivers_nothing(server: Server) -> None:
    old = server.run({"a.csv": b"old"}, fence=1)
    new = server.run({"a.csv": b"new"}, fence=2)
    with pytest.raises(StaleConductor):
        old.deliver({})
    assert not server.result.exists()
    new.deliver({})
    old.remove()
    assert server.delivered()["a.csv"] == b"new"


def test_a_run_superseded_late_does_not_change_the_result(server: Server) -> None:
    old = server.run({"a.csv": b"old"}, fence=1)
    server.run({"a.csv": b"new"}, fence=2).deliver({})
    with pytest.raises(StaleConductor):
        old.deliver({})
    assert server.delivered()["a.csv"] == b"new"


def test_another_run_replaces_the_result(server: Server) -> None:
    server.run({"a.csv": b"first", "b/c.csv": b"first"}).deliver({})
    server.run({"a.csv": b"second"}, fence=2).deliver({})
    delivered = server.delivered()
    assert delivered.pop(CHECKSUMS)
    assert delivered == {"a.csv": b"second"}


def test_runs_of_one_execution_do_not_share_a_folder(server: Server) -> None:
    first, second = server.run({"a.csv": b"first"}), server.run({"a.csv": b"second"})
    first.deliver({})
    assert (second.path / "a.csv").read_bytes() == b"second"


def test_removing_a_folder_that_was_delivered_leaves_the_result(server: Server) -> None:
    folder = server.run(FILES)
    folder.deliver({})
    folder.remove()
    assert server.delivered().keys() == {*FILES, CHECKSUMS}


def test_removing_an_undelivered_folder_leaves_nothing(server: Server) -> None:
    folder = server.run(FILES)
    folder.remove()
    folder.remove()
    assert not folder.path.exists()
    assert not server.result.exists()


def test_the_result_of_a_removed_execution_is_not_delivered(server: Server) -> None:
    folder = server.run(FILES)
    server.purge()
    with pytest.raises(StageFailed, match=f"{ID} is not being written"):
        folder.deliver({})
    folder.remove()
    assert server.left() == []


class Meanwhile(Mapping[Path, StoredObject]):
    """Contains nothing, but performs an action at the `at`-th lookup."""

    def __init__(self, act: Callable[[], object], at: int) -> None:
        self._act = act
        self._left = at

    def __getitem__(self, path: Path) -> StoredObject:
        self._left -= 1
        if not self._left:
            self._act()
        raise KeyError(path)

    def __iter__(self) -> Iterator[Path]:
        return iter(())

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("at", range(1, len(FILES) + 1))
def test_an_execution_may_be_removed_while_its_files_are_described(server: Server, at: int) -> None:
    folder = server.run(FILES)
    with pytest.raises(StageFailed, match=f"{ID} is not being written"):
        folder.deliver(Meanwhile(server.purge, at))
    folder.remove()
    assert server.left() == []


def test_a_vanished_file_is_not_mistaken_for_a_removed_execution(server: Server) -> None:
    folder = server.run(FILES)
    vanish = Meanwhile((folder.path / "notes.txt").unlink, 1)
    with pytest.raises(FileNotFoundError):
        folder.deliver(vanish)
    assert not server.result.exists()


@pytest.mark.parametrize("at", range(1, len(FILES) + 1))
def test_a_run_may_be_superseded_while_its_files_are_described(server: Server, at: int) -> None:
    folder = server.run(FILES)
    with pytest.raises(StaleConductor):
        folder.deliver(Meanwhile(lambda: server.run(fence=2), at))
    assert not server.result.exists()


def many(n_whole: int, n_deep: int) -> dict[str, bytes]:
    whole = {f"{i:03}.png": b"png" for i in range(n_whole)}
    return whole | {f"results.zarr/t2m/c.{i}": b"chunk" for i in range(n_deep)}


def totals(listing: Listing) -> tuple[int, int, bool]:
    found = listing.totals
    assert found.listed == len(listing.output_files)
    return found.files, found.listed, found.truncated


@pytest.mark.parametrize(
    ("n_whole", "n_deep", "listed"),
    [(2, 7, 10), (9, 0, 10), (0, 9, 10), (2, 8, 3), (2, 500, 3), (10, 0, 10), (50, 50, 10)],
)
def test_the_list_of_many_files_is_bounded(
    server: Server, n_whole: int, n_deep: int, listed: int
) -> None:
    files = many(n_whole, n_deep)
    described = server.run(files).deliver({}, max_listed=10)
    n_files = len(files) + 1
    assert totals(described.listing) == (n_files, listed, n_files > 10)
    # The checksums contain all files and are always listed themselves.
    assert f"{ID}/{CHECKSUMS}" in [file.path for file in described.listing.output_files]
    assert sorted(server.verify()) == sorted(files)


def test_long_lists_keep_top_level_files_and_zarr_metadata(
    server: Server,
) -> None:
    files = {**FILES, "tracks/zarr.json": b"", **many(0, 100)}
    described = server.run(files).deliver({}, max_listed=20)
    assert {file.path.removeprefix(f"{ID}/") for file in described.listing.output_files} == {
        "notes.txt",
        "empty.bin",
        "results.zarr/zarr.json",
        "results.zarr/t2m/zarr.json",
        CHECKSUMS,
    }


def test_a_file_that_changes_while_it_is_described_fails_the_run(server: Server) -> None:
    folder = server.run({"a.txt": b"a", "results.zarr/t2m/c.0.0": b"chunk", "z.txt": b"z"})

    class Meddling(dict[Path, StoredObject]):
        """Known files that modify a file when the last one is looked up."""

        def get(self, path: Path, default: Any = None) -> Any:
            if path.name == "c.0.0":
                (folder.path / "a.txt").write_bytes(b"and more")
            return None

    with pytest.raises(StageFailed, match="a.txt was modified after the workflow had ended"):
        folder.deliver(Meddling())
    assert not server.result.exists()
