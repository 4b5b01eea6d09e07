"""Imports point down through an order of folders, and bring nothing heavy."""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("workflows", "deployments", "serve_app")
"""From the bottom up: each may import itself and what stands before it."""

FORBIDDEN = {
    "workflows": {"torch", "earth2studio", "ray", "fastapi", "starlette", "sqlalchemy", "azure"},
    "deployments": {"torch", "earth2studio", "azure", "obstore", "httpx", "pystac"},
    "serve_app": {"torch", "earth2studio", "azure", "obstore", "httpx", "pystac"},
}
"""What importing a package's modules must not bring with it."""


FOLDERS = (
    "workflows",
    "workflows.stac",
    "deployments.runtime",
    "deployments.azure",
    "deployments.store",
    "deployments.synthetic",
    "deployments.results",
    "deployments.initial_conditions",
    "deployments.geocatalog",
    "deployments.blob_uploader",
    "deployments.packager",
    "deployments.models",
    "deployments.custom_workflow",
    "deployments.conductor",
    "deployments.loaders",
    "serve_app.files",
    "serve_app.http",
    "serve_app.settings",
    "serve_app.haproxy",
    "serve_app",
)
"""From the bottom up: each may import itself and what stands before it."""

BUILDER = "serve_app.app"
"""The only module that may import deployments, which it binds."""


def modules(package: str) -> list[str]:
    """Return the names of the modules of a package that can be imported."""
    return [name for name in sources(package) if not name.endswith(".__main__")]


@functools.cache
def sources(package: str) -> dict[str, ast.Module]:
    """Parse the modules of a package, by name."""
    trees = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(file.read_text())
    assert trees
    return trees


SOURCES = {name: tree for package in PACKAGES for name, tree in sources(package).items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that are imported anywhere in a module, relative imports refused."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in SOURCES else str(node.module)


def folder_of(module: str) -> str | None:
    """Return the innermost of `FOLDERS` that holds a module."""
    holding = [name for name in FOLDERS if f"{module}.".startswith(f"{name}.")]
    return max(holding, key=len, default=None)


def test_every_module_has_its_place_in_the_order_of_folders() -> None:
    assert [name for name in SOURCES if folder_of(name) is None] == ["deployments"]


def test_imports_point_down() -> None:
    wrong = []
    for name, tree in SOURCES.items():
        own = folder_of(name)
        below = set(FOLDERS[: FOLDERS.index(own) + 1]) if own is not None else set()
        for other in imported(tree):
            folder = folder_of(other)
            if other.split(".")[0] in {"tests", "examples", "benchmarks"} or (
                folder is not None and folder not in below
            ):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_only_the_builder_imports_deployments() -> None:
    deployments = {name for name, tree in SOURCES.items() if defines_deployment(tree)}
    assert len(deployments) == 10
    importers = {name for name, tree in SOURCES.items() if deployments & set(imported(tree))}
    assert importers == {BUILDER}


def defines_deployment(tree: ast.Module) -> bool:
    return any(
        ast.unparse(decorator).startswith("serve.deployment")
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
    )


IMPORTING = """
import importlib, json, os, socket, sys

ours, modules, forbidden = json.loads(sys.argv[1])
read = type(os.environ).__getitem__

def spy(self, key):
    caller = sys._getframe(1)
    while caller.f_globals.get("__name__") in ("os", "collections.abc"):
        caller = caller.f_back
    name = caller.f_globals.get("__name__", "")
    if name.split(".")[0] in ours:
        print(f"{name} reads {key}")
    return read(self, key)

def connect(self, address):
    print(f"connects to {address}")

type(os.environ).__getitem__ = spy
socket.socket.connect = connect
for package, names in modules.items():
    for name in names:
        importlib.import_module(name)
        for heavy in sorted(sys.modules.keys() & forbidden[package]):
            sys.exit(f"{name} brings {heavy}")
"""


def test_importing_brings_nothing_heavy_reads_no_environment_and_connects_to_nothing() -> None:
    # From the bottom up, one module after another, so that the culprit is named.
    values = PACKAGES, {p: modules(p) for p in PACKAGES}, {p: [*FORBIDDEN[p]] for p in PACKAGES}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, json.dumps(values)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == []
