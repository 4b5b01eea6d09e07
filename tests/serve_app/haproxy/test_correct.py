"""Corrections of the configuration that Serve generates for HAProxy."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import pytest

from serve_app.haproxy.launch import (
    CORRECTED,
    ERRORS,
    RETRY_AFTER_S,
    TIMEOUTS,
    UnexpectedConfiguration,
    correct,
    max_connections,
    prepare,
    protect,
)
from serve_app.http import errors
from serve_app.http.routes.executions import MAX_WAIT_S
from tests.serve_app.haproxy.generated import Generated


def correction(folder: Path, config: str, **environment: str) -> str:
    return correct(config, folder, 77, environment)


def lines_with(config: str, word: str) -> list[str]:
    return [line.strip() for line in config.splitlines() if word in line]


def test_each_line_is_corrected_once(tmp_path: Path) -> None:
    generated = Generated(tmp_path, replica=1, fallback=2).text
    config = correction(tmp_path, generated)
    assert lines_with(config, "maxconn ") == ["maxconn 77"]
    assert lines_with(config, "tune.bufsize ") == ["tune.bufsize 65536"]
    assert lines_with(config, "tune.rcvbuf.") == ["tune.rcvbuf.server 262144"]
    assert lines_with(config, "tune.sndbuf.") == ["tune.sndbuf.client 524288"]
    assert re.fullmatch(r"stats socket \S+ mode 600 .*", *lines_with(config, "stats socket"))
    assert lines_with(config, "timeout client") == ["timeout client 120s"]
    assert lines_with(config, "timeout server") == ["timeout server 120s"]
    assert lines_with(config, "timeout http-request") == ["timeout http-request 10s"]
    assert lines_with(config, "errorfile ") == [
        f"errorfile {code} {tmp_path}/{code}.http" for code in ERRORS
    ]
    assert lines_with(config, "status 404") == []
    assert lines_with(config, "backup") == ["server fallback 127.0.0.1:2 check backup disabled"]
    # Nothing else changes.
    kept = set(generated.splitlines()) & set(config.splitlines())
    assert len(set(generated.splitlines()) - kept) == 9


@pytest.mark.parametrize("line", ["maxconn", "timeout client", "errorfile", "status 404"])
def test_a_line_that_is_missing_is_an_error(tmp_path: Path, line: str) -> None:
    generated = Generated(tmp_path).text
    changed = "".join(each for each in generated.splitlines(True) if line not in each)
    with pytest.raises(UnexpectedConfiguration, match="lines match"):
        correction(tmp_path, changed)


def test_a_backup_in_another_form_is_an_error(tmp_path: Path) -> None:
    generated = Generated(tmp_path, replica=1, fallback=2).text
    with pytest.raises(UnexpectedConfiguration, match="backup"):
        correction(tmp_path, generated.replace("check backup", "check backup weight 1"))


def test_variables_of_serve_replace_the_times(tmp_path: Path) -> None:
    config = correction(tmp_path, Generated(tmp_path).text, RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S="7")
    assert lines_with(config, "timeout client") == ["timeout client 7s"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:1"),
        ("0.0.0.0", "127.0.0.1:1"),
        ("localhost", "127.0.0.1:1"),
        ("::1", "[::1]:1"),
        ("10.0.0.7", "10.0.0.7:1"),
    ],
)
def test_replicas_are_called_where_serve_binds_them(
    tmp_path: Path, host: str, address: str
) -> None:
    config = correction(tmp_path, Generated(tmp_path, replica=1, host=host).text)
    assert lines_with(config, "server replica")[0].split()[2] == address


def test_no_time_ends_a_long_poll() -> None:
    assert MAX_WAIT_S < min(TIMEOUTS["client"], TIMEOUTS["server"])


def test_errors_have_the_form_of_the_api(tmp_path: Path) -> None:
    file = Generated(tmp_path / "node").file
    prepare(file, {})
    for code, (status, _, detail) in ERRORS.items():
        head, _, body = (file.parent / f"{code}.http").read_bytes().decode().partition("\r\n\r\n")
        assert json.loads(body) == {"detail": detail}
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert (f"\r\nRetry-After: {RETRY_AFTER_S}" in head) == (status == 503)
    assert RETRY_AFTER_S == errors.RETRY_AFTER_S


def test_the_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    file = Generated(tmp_path / "node").file
    prepare(file, {})
    assert file.parent.stat().st_mode & 0o777 == 0o700
    once = file.read_text()
    prepare(file, {})
    assert file.read_text() == once


def test_the_folder_is_closed_before_a_corrected_file_is_trusted(tmp_path: Path) -> None:
    file = Generated(tmp_path / "node").file
    file.write_text(CORRECTED)
    file.parent.chmod(0o777)
    prepare(file, {})
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("created", "protected"), [(0o775, 0o755), (0o1777, 0o1777)])
def test_others_cannot_replace_the_folder(tmp_path: Path, created: int, protected: int) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    tmp_path.chmod(created)
    protect(folder)
    assert tmp_path.stat().st_mode & 0o7777 == protected


def test_a_link_to_the_folder_around_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared" / "node").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "link").symlink_to("shared")
    with pytest.raises(PermissionError, match="RAY_SERVE_HAPROXY_SOCKET_PATH"):
        protect(tmp_path / "link" / "node")
    assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        protect(folder)


@pytest.mark.privileged
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_corrected_file_in_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    file = Generated(tmp_path / "node").file
    file.write_text(CORRECTED)
    os.chown(file.parent, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        prepare(file, {})


@pytest.mark.parametrize(
    ("wanted", "open_files", "accepted"),
    [
        (10_000, 65_536, 10_000),
        (10_000, 20_000, 7_920),
        (10_000, 1_024, 329),
        (10_000, resource.RLIM_INFINITY, 10_000),
    ],
)
def test_connections_fit_the_limit_of_open_files(
    wanted: int, open_files: int, accepted: int
) -> None:
    assert max_connections(wanted, open_files) == accepted
