"""Check what many readers make of results, and print the table of docs/readers.md.

Run by hand, as ``python -m tests.readers FOLDER [NAME…]``. Makes a virtual environment in FOLDER
from PyPI and installs zarrita from npm, some hundred megabytes, and needs GDAL and CDO
(``apt-get install gdal-bin python3-gdal cdo``). Takes some minutes; NAME selects readers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.readers import probes
from tests.readers.service import PLANS, WAYS, Service, check_first, check_last, service
from workflows.base import Plan
from workflows.manifest import NETCDF, ZARR

PACKAGES = (
    *("zarr", "fsspec", "aiohttp", "xarray", "dask", "tensorstore", "obstore", "rasterio"),
    *("h5netcdf", "netCDF4", "kerchunk", "virtualizarr[hdf]", "arro3-core"),
)
GROUPS = {"ZARR": "zarr", "NETCDF": "netcdf4", "LOCAL_ZARR": "zarr", "LOCAL_NETCDF": "netcdf4"}
SYSTEM_PYTHON = {"GDAL": "/usr/bin/python3", "CDO": "/usr/bin/python3"}
VERSIONS = {
    "zarr-python": "zarr",
    "zarr-python + obstore": "obstore",
    "xarray + dask": "dask",
    "netCDF4": "netCDF4",
    "VirtualiZarr": "virtualizarr",
}
LIMIT_S = 20.0
HERE = Path(__file__).parent


class Failure(Exception):
    """What a probe raised."""


class NoAnswer(Failure):
    """A probe did not go on within `LIMIT_S`, or crashed."""


class Reader:
    """One probe in its environment."""

    def __init__(self, folder: Path, group: str, name: str) -> None:
        self._folder = folder
        self.group = group
        self.name = name
        self._python = SYSTEM_PYTHON.get(name, str(folder / "venv/bin/python"))

    def version(self) -> str:
        """Return the version of the library."""
        if self.name == "GDAL":
            return _output("gdalinfo", "--version").split()[1].rstrip(",")
        if self.name == "CDO":
            return _output("cdo", "--version").split()[4]
        if self.name == "zarrita":
            package = self._folder / "node/node_modules/zarrita/package.json"
            return str(json.loads(package.read_text())["version"])
        package_name = VERSIONS.get(self.name, self.name)
        code = f"import importlib.metadata as m; print(m.version({package_name!r}))"
        return _output(self._python, "-c", code).strip()

    @contextmanager
    def reading(self, url: str, plan: Plan) -> Iterator[Iterator[dict[str, Any]]]:
        """Start the probe and return its parts; each raises Failure if the probe did."""
        node = self._folder / "node"
        environment = os.environ | {"NODE_SCRIPT": str(node / "zarrita.mjs")}
        command = [self._python, str(HERE / "probes.py"), self.group, self.name, url]
        with subprocess.Popen(
            [*command, plan.variables[0]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            limit = threading.Timer(LIMIT_S, process.kill)
            limit.start()
            try:
                yield self._parts(process)
            finally:
                limit.cancel()
                process.kill()

    def _parts(self, process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
        assert process.stdin and process.stdout
        while True:
            line = process.stdout.readline()
            if not line:
                raise NoAnswer
            read = json.loads(line)
            if "error" in read:
                raise Failure(read["error"])
            yield read
            process.stdin.write("\n")
            process.stdin.flush()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Prepare the environments, let every reader read, and print the table."""
    folder = Path(sys.argv[1]).absolute()
    _prepare(folder)
    print("| Reader | Version | FCN3 | StormScope | When the result is gone |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as data, service(Path(data)) as results:
        for group, output_format in GROUPS.items():
            for name in getattr(probes, group):
                if sys.argv[2:] and name not in sys.argv[2:]:
                    continue
                reader = Reader(folder, group, name)
                plans = {
                    model: plan.model_copy(update={"output_format": output_format})
                    for model, plan in PLANS.items()
                }
                opened = [_reads(results, reader, plan) for plan in plans.values()]
                is_remote = "yes" in opened and not group.startswith("LOCAL")
                gone = _when_gone(results, reader, plans["fcn3"]) if is_remote else "–"
                row = [f"{name}, {group.lower()}", reader.version(), *opened, gone]
                print(f"| {' | '.join(row)} |", flush=True)


def _where(results: Service, reader: Reader, plan: Plan, execution_id: str) -> str:
    if reader.group.startswith("LOCAL"):
        folder = results.path(plan, execution_id)
        return str(folder / (ZARR if plan.output_format == "zarr" else NETCDF))
    return results.url(plan, execution_id)


def _reads(results: Service, reader: Reader, plan: Plan) -> str:
    """Return whether a reader reads the right values."""
    where = _where(results, reader, plan, results.completed(plan))
    try:
        with reader.reading(where, plan) as parts:
            check_first(plan, next(parts))
            check_last(plan, next(parts))
    except Failure as error:
        return f"no: {error}"
    except AssertionError:
        return "WRONG"
    return "yes"


def _when_gone(results: Service, reader: Reader, plan: Plan) -> str:
    """Return what a reader does when a result disappears while it is read."""
    outcomes: dict[str, list[str]] = {}
    for way in WAYS:
        execution_id = results.completed(plan)
        with reader.reading(_where(results, reader, plan, execution_id), plan) as parts:
            next(parts)
            with results.without(plan, execution_id, way):
                try:
                    check_last(plan, next(parts))
                    outcome = "had read it"
                except NoAnswer:
                    outcome = f"no answer in {LIMIT_S:.0f} s"
                except Failure:
                    outcome = "raises"
                except AssertionError:
                    outcome = "MISSING VALUES"
        outcomes.setdefault(outcome, []).append(way)
    for what, execution_id in {"running": results.running(plan), "unknown": "exec_1_0"}.items():
        with reader.reading(_where(results, reader, plan, execution_id), plan) as parts:
            try:
                next(parts)
                outcomes.setdefault("OPENS", []).append(what)
            except Failure:
                outcomes.setdefault("raises", []).append(what)
    return "; ".join(f"{outcome}: {', '.join(ways)}" for outcome, ways in outcomes.items())


def _prepare(folder: Path) -> None:
    """Make the environments, unless they exist."""
    python, node = folder / "venv/bin/python", folder / "node"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    if not node.exists():
        node.mkdir()
        subprocess.run(["npm", "install", "--silent", "zarrita"], cwd=node, check=True)
    shutil.copy(HERE / "zarrita.mjs", node)


if __name__ == "__main__":
    main()
