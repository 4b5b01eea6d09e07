"""Serve a configuration file in the foreground: ``python -m serve_app CONFIG [--port PORT]``.

Checks the file, sets up the environment that the server needs, and calls ``serve run`` on a new Ray
instance, or on the one that RAY_ADDRESS names. Ctrl-C or SIGTERM stops the server.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import NoReturn

import yaml

import serve_app.haproxy
from serve_app.ports import base_url, describe_taken_ports, ports_and_sockets

ENVIRONMENT = {
    # 3 to 4 times the requests per second of the Python proxy.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Serve's own configuration of HAProxy answers 404 while replicas start, and in plain text.
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(serve_app.haproxy.__file__).with_name("haproxy")),
    # The same for what Serve itself answers, in its own proxy and in ingress replicas.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.serve_layer:middlewares",
    "RAY_USAGE_STATS_ENABLED": "0",
    # HAProxy is restarted after three failed checks: its death is noticed in 6 s, not 30.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # With user code in its own thread, `send` never waits, so that a whole download would be
    # buffered for a slow client. Every request would also cost two hops between threads.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # How long the ingress stays for load balancers that have not noticed the shutdown. With the
    # default of 30 s, Ctrl-C would take as long.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Ray drops lines that another process has logged, such as the last line of a traceback.
    "RAY_DEDUP_LOGS": "0",
}
"""Variables that are set unless the caller's environment has them."""


def main() -> int:
    """Check the file named on the command line, then serve it until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="configuration file")
    parser.add_argument("--port", type=int, help="HTTP port, instead of the one in the file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="earth2serve-") as folder:
        return _serve(arguments, Path(folder))


def _serve(arguments: argparse.Namespace, folder: Path) -> int:
    os.environ.update(ENVIRONMENT | {"EARTH2SERVE_PYTHON": sys.executable} | os.environ)
    if _starts_ray(os.environ):
        os.environ.update(ports_and_sockets(folder) | os.environ)
    token = _protect_ray(os.environ)
    # Imported only now, because Ray reads its environment when it is imported.
    import ray
    from ray.serve.scripts import cli

    from serve_app.check import BUILD
    from serve_app.check import main as check
    from serve_app.settings.parsing import SettingsError, parse_settings
    from serve_app.settings.preflight import check_certificates, check_installed
    from serve_app.startup import announce

    if check([arguments.config]):
        return 1
    values = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
    route_prefix = "/"
    try:
        for application in values["applications"]:
            if application["import_path"] == BUILD:
                route_prefix = application.get("route_prefix", "/")
                # The file is valid, but the environment may not be.
                settings = parse_settings(application.get("args", {}), os.environ)
                check_installed(settings)
                check_certificates(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    http_options = dict(values.get("http_options") or {})
    if arguments.port is not None:
        http_options["port"] = arguments.port
    # In a running cluster, the ports belong to the server that this one replaces.
    if _starts_ray(os.environ) and (taken := describe_taken_ports(http_options, os.environ)):
        print("\n".join(taken), file=sys.stderr)
        return 1
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"), namespace="serve")
    if token is not None:
        print(f"token for Ray's dashboard: {token}", file=sys.stderr)
    url = base_url(http_options, route_prefix)
    announce(url, lambda text: print(text, file=sys.stderr, flush=True))
    config = arguments.config
    if arguments.port is not None:
        config = str(folder / Path(config).name)
        changed = values | {"http_options": http_options}
        Path(config).write_text(yaml.safe_dump(changed), encoding="utf-8")
    return run_until_interrupted(lambda: cli.main(["run", config], prog_name="serve"))


def _starts_ray(environment: Mapping[str, str]) -> bool:
    return environment.get("RAY_ADDRESS", "local") == "local"


def _protect_ray(environment: MutableMapping[str, str]) -> str | None:
    """Make a new Ray instance require a token, since its ports are open on all interfaces.

    Without a given token, Ray would write one to the home folder, and later clusters would require
    it, too. Returns the token; None if the caller's environment decides about authentication.
    """
    if "RAY_AUTH_MODE" in environment or not _starts_ray(environment):
        return None
    environment["RAY_AUTH_MODE"] = "token"
    return environment.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def run_until_interrupted(serve: Callable[[], object]) -> int:
    """Call ``serve run``, and return the exit status: 0 only after SIGINT or SIGTERM.

    ``serve run`` itself exits with 0 after errors, too.
    """
    # After Ray has installed its own handlers. A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        serve()
    except SystemExit as ended:
        if ended.code:
            raise
    return 0 if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else 1


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    # A second signal must not interrupt the shutdown.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
