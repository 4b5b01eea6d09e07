"""Collecting the log entries of an execution from files as Serve writes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app import logs

ID = "exec_20250101_ab"


def line(second: float, message: str, process: str = "app_FCN3 x1y2", level: str = "INFO") -> str:
    clock = f"{second:06.3f}".replace(".", ",")
    return f"{level} 2025-01-01 00:00:{clock} {process} -- {message}\n"


def json_line(second: float, message: str, **keys: str) -> str:
    clock = f"{second:06.3f}".replace(".", ",")
    values = {
        "asctime": f"2025-01-01 00:00:{clock}",
        "levelname": "INFO",
        "message": message,
        "deployment": "app_Packager",
        "replica": "p1",
        **keys,
    }
    return json.dumps(values) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "serve").mkdir()
    return tmp_path


def gathered(folder: Path, execution_id: str = ID) -> list[str]:
    return [str(entry) for entry in logs.gather(execution_id, [folder])]


def test_entries_of_all_processes_are_sorted_by_time(folder: Path) -> None:
    serve = folder / "serve"
    (serve / "replica_app_FCN3_x1y2.log").write_text(
        line(1, f"{ID}: one") + line(1.5, "of no execution") + line(4, f"{ID}: four")
    )
    (serve / "replica_app_Conductor_c1.log").write_text(
        line(2, f"{ID} two", "app_Conductor c1")
        + "INFO 2025-01-01 00:00:03,000 app_Conductor c1 "
        + f"0b5b8c8e-0000-4000-8000-000000000000 -- {ID} three\n"
    )
    assert gathered(folder) == [
        f"2025-01-01 00:00:01,000 INFO app_FCN3 x1y2 {ID}: one",
        f"2025-01-01 00:00:02,000 INFO app_Conductor c1 {ID} two",
        f"2025-01-01 00:00:03,000 INFO app_Conductor c1 {ID} three",
        f"2025-01-01 00:00:04,000 INFO app_FCN3 x1y2 {ID}: four",
    ]


def test_a_traceback_belongs_to_its_entry(folder: Path) -> None:
    trace = "Traceback (most recent call last):\n  File x\nRuntimeError: broken"
    (folder / "serve" / "replica_a.log").write_text(
        line(1, f"{ID}: failed", level="ERROR") + trace + "\n" + line(2, "something else")
    )
    (folder / "serve" / "replica_b.log").write_text(
        json_line(3, "failed, too", execution_id=ID, stage="package", exc_text=trace)
    )
    assert gathered(folder) == [
        f"2025-01-01 00:00:01,000 ERROR app_FCN3 x1y2 {ID}: failed\n{trace}",
        f"2025-01-01 00:00:03,000 INFO app_Packager p1 [package] failed, too\n{trace}",
    ]


def test_longer_ids_that_contain_the_id_do_not_match(folder: Path) -> None:
    (folder / "serve" / "replica_a.log").write_text(
        line(1, f"{ID}c: no") + line(2, f"x{ID} no") + line(3, f"folder/{ID}/results.nc yes")
    )
    (folder / "serve" / "replica_b.log").write_text(
        json_line(4, f"{ID} waits for this one", execution_id="exec_other")
        + json_line(5, f"removed the leftovers of {ID}")
    )
    assert [entry.rpartition(" ")[2] for entry in gathered(folder)] == ["yes", ID]


def test_rotated_files_are_read_oldest_first(folder: Path) -> None:
    serve = folder / "serve"
    # All in the same millisecond, so that only the order of the files counts.
    for name, word in {".log.10": "a", ".log.2": "b", ".log.1": "c", ".log": "d"}.items():
        (serve / f"replica_a{name}").write_text(line(1, f"{ID} {word}"))
    assert [entry[-1] for entry in gathered(folder)] == ["a", "b", "c", "d"]


def test_truncated_lines_and_invalid_text_are_skipped(folder: Path) -> None:
    (folder / "serve" / "replica_a.log").write_bytes(
        b"\xff\xfe the end of a rotated traceback\n"
        + json_line(1, "complete", execution_id=ID).encode()
        + b'{"asctime": "2025-01-01 00:0'
    )
    assert len(gathered(folder)) == 1


def test_several_folders_are_searched(folder: Path, tmp_path_factory) -> None:
    (folder / "serve" / "replica_a.log").write_text(line(2, f"{ID} here"))
    copied = tmp_path_factory.mktemp("copied")
    (copied / "replica_b.log").write_text(line(1, f"{ID} there"))
    found = [str(entry).rpartition(" ")[2] for entry in logs.gather(ID, [folder, copied])]
    assert found == ["there", "here"]


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "serve" / "replica_a.log").write_text(line(2, f"{ID} here"))
    assert logs.main([ID, "--ray-logs", str(folder)]) == 0
    assert capsys.readouterr().out == f"2025-01-01 00:00:02,000 INFO app_FCN3 x1y2 {ID} here\n"
    assert logs.main(["exec_none", "--ray-logs", str(folder)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"no entry of exec_none in 1 files below {folder}.")
    with pytest.raises(SystemExit):
        logs.main([ID, "--ray-logs", str(folder / "none")])
    assert "is not a folder" in capsys.readouterr().err


def test_the_default_folder_is_that_of_the_last_ray_session(tmp_path: Path) -> None:
    serve = tmp_path / "session_latest" / "logs" / "serve"
    serve.mkdir(parents=True)
    (serve / "replica_a.log").write_text(line(2, f"{ID} here"))
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.logs", ID],
        env={**os.environ, "RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    help_page = subprocess.run(
        [sys.executable, "-m", "serve_app.logs", "--help"], capture_output=True, text=True
    )
    assert "config/kuberay/logs.sh" in help_page.stdout
