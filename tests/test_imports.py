"""Imports point down, serve_app → deployments → workflows, and bring nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("workflows", "deployments", "serve_app")
"""From the bottom up: each may import itself and what stands before it."""

FORBIDDEN = {
    "workflows": {"torch", "earth2studio", "ray", "fastapi", "starlette", "sqlalchemy", "azure"},
    "deployments": {"torch", "earth2studio", "azure", "obstore", "httpx", "pystac"},
    "serve_app": {"torch", "earth2studio", "azure", "obstore", "httpx", "pystac"},
}
"""What importing a package's modules must not bring with it."""


def modules(package: str) -> list[str]:
    """Name every module of a package that can be imported without running a command."""
    names = []
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Give the top-level names of everything imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests", "examples", "benchmarks"}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(ast.parse(file.read_text()), package)
        if name in above
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_bring_nothing_heavy(package: str) -> None:
    # One module after another in a process of its own, so that the culprit is named.
    program = (
        "import importlib, sys\n"
        "found = set()\n"
        f"for name in {modules(package)!r}:\n"
        "    importlib.import_module(name)\n"
        f"    new = {FORBIDDEN[package]!r} & sys.modules.keys() - found\n"
        "    found |= new\n"
        "    for module in sorted(new): print(f'{name} brings {module}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_reads_no_environment_and_connects_to_nothing(package: str) -> None:
    program = (
        "import os, socket, sys\n"
        "ours = ('workflows', 'deployments', 'serve_app')\n"
        "read = type(os.environ).__getitem__\n"
        "def spy(self, key):\n"
        "    caller = sys._getframe(1)\n"
        "    while caller.f_globals.get('__name__') in ('os', 'collections.abc'):\n"
        "        caller = caller.f_back\n"
        "    name = caller.f_globals.get('__name__', '')\n"
        "    if name.split('.')[0] in ours: print(f'{name} reads {key}')\n"
        "    return read(self, key)\n"
        "type(os.environ).__getitem__ = spy\n"
        "def connect(self, address): print(f'connects to {address}')\n"
        "socket.socket.connect = connect\n"
        "import importlib\n"
        f"for name in {modules(package)!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == []
