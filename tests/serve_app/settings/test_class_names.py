"""Names of workflow classes, read from source code without running it."""

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from serve_app.settings.class_names import declared_name

NUMBERS = count()
"""Results are cached, so each test has its own modules."""

Module = Callable[..., str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Return a function that writes a module that must not be imported, and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str | bytes, path: str = "{}.py") -> str:
        package = f"users_{next(NUMBERS)}"
        file = tmp_path / path.format(package)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = source.encode() if isinstance(source, str) else source
        file.write_bytes(content + b"\nraise RuntimeError('imported')\n")
        return ".".join(file.relative_to(tmp_path).with_suffix("").parts)

    return write


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("name = 'storms'", "storms"),
        ("name: str = 'storms'", "storms"),
        ("alias = name = 'storms'", "storms"),
        ("'''A docstring.'''\n    description = 'no name'\n    name = 'storms'", "storms"),
        # Earth2Studio's base class falls back to the name of the class.
        ("pass", "Mine"),
        ("name: str", "Mine"),
        ("def name(self): ...", "Mine"),
        ("name = 'sto' + 'rms'", None),
        ("name = f'storms_{1}'", None),
        ("name = PREFIX", None),
        ("name = 5", None),
    ],
)
def test_a_literal_name_is_read(module: Module, body: str, name: str | None) -> None:
    source = f"class Other:\n    name = 'other'\n\nclass Mine(Other):\n    {body}\n"
    assert declared_name(f"{module(source)}:Mine") == name


@pytest.mark.parametrize(
    "source",
    [
        "class Other: ...",
        "if True:\n    class Mine:\n        name = 'storms'",
        "class Mine:\n    name = 'storms'\n  broken",
        b"class Mine:\n    name = 'st\xf6rms'",
        b"\0",
    ],
)
def test_unreadable_source_has_no_name(module: Module, source: str | bytes) -> None:
    assert declared_name(f"{module(source)}:Mine") is None


def test_a_nested_class_has_no_name(module: Module) -> None:
    source = "class Outer:\n    name = 'outer'\n    class Mine:\n        name = 'storms'"
    assert declared_name(f"{module(source)}:Outer.Mine") is None


@pytest.mark.parametrize("path", ["no_such_module:Mine", "no.such.module:Mine", "sys:Mine"])
def test_a_module_without_source_has_no_name(path: str) -> None:
    assert declared_name(path) is None


@pytest.mark.parametrize(
    "source",
    [
        b"\xef\xbb\xbfclass Mine:\n    name = 'storms'",
        b"# -*- coding: latin-1 -*-\n# \xf6\nclass Mine:\n    name = 'storms'",
    ],
)
def test_source_is_read_in_its_declared_encoding(module: Module, source: bytes) -> None:
    assert declared_name(f"{module(source)}:Mine") == "storms"


def test_the_package_of_a_module_is_not_imported(module: Module, tmp_path: Path) -> None:
    name = module("class Mine:\n    name = 'storms'", "{}/inner/workflows.py")
    package = name.partition(".")[0]
    for folder in (tmp_path / package, tmp_path / package / "inner"):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    assert declared_name(f"{name}:Mine") == "storms"
    assert [module for module in sys.modules if module.startswith(package)] == []


def test_namespace_packages_are_searched(module: Module) -> None:
    name = module("class Mine:\n    name = 'storms'", "{}/deeper/down/workflows.py")
    assert declared_name(f"{name}:Mine") == "storms"


def test_a_class_in_the_package_itself(module: Module) -> None:
    name = module("class Mine:\n    name = 'storms'", "{}/__init__.py")
    assert declared_name(f"{name.removesuffix('.__init__')}:Mine") == "storms"


def test_a_module_has_no_submodules(module: Module) -> None:
    name = module("class Mine:\n    name = 'storms'")
    assert declared_name(f"{name}.workflows:Mine") is None
