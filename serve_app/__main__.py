"""Serve a configuration file in the foreground: ``python -m serve_app CONFIG [--port PORT]``.

This is ``serve run`` after a check of the file, in the environment that the server needs. Ctrl-C
stops it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {
    # 3 to 4 times the requests per second of the Python proxy.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Left unset, Ray writes a token to the home folder, and later clusters require it.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # With user code in a thread of its own a slow client's whole file would pile up in memory:
    # its `send` never waits. It also costs every request two hops between threads.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # How long the ingress lingers for load balancers that have not noticed: 30 s by default, and
    # Ctrl-C would take as long.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
"""What is set unless the caller's environment says otherwise."""


def main() -> int:
    """Check the file named on the command line, then serve it until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m serve_app", description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--port", type=int, help="instead of the one in the file")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT | os.environ)
    # Ray reads its environment when it is imported.
    import yaml
    from ray.serve.scripts import cli

    from serve_app.check import main as check

    if check([arguments.config]):
        return 1
    if arguments.port is None:
        cli.main(["run", arguments.config], prog_name="serve")
        return 0
    values = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
    values["http_options"] = {**values.get("http_options", {}), "port": arguments.port}
    with tempfile.TemporaryDirectory(prefix="earth2serve-") as folder:
        copy = Path(folder, Path(arguments.config).name)
        copy.write_text(yaml.safe_dump(values), encoding="utf-8")
        cli.main(["run", str(copy)], prog_name="serve")
    return 0


if __name__ == "__main__":
    sys.exit(main())
