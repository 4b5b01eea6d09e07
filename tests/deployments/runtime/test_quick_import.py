"""Earth2Studio's import gets a cheap call stack, and all other callers the whole one."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from deployments.runtime.quick_import import IMPORTS, speed_up_earth2studio_import

FUNCTION = "import inspect\ndef caller(): return inspect.stack()[1].filename"


def test_other_callers_get_the_whole_stack() -> None:
    speed_up_earth2studio_import()
    stack = inspect.stack()
    assert (stack[0].filename, stack[0].function) == (
        __file__,
        "test_other_callers_get_the_whole_stack",
    )
    assert stack[0].code_context == ["    stack = inspect.stack()\n"]
    assert len(stack) > 10


def test_earth2studio_gets_the_file_of_its_caller() -> None:
    speed_up_earth2studio_import()
    namespace = {"__name__": IMPORTS}
    exec(FUNCTION, namespace)
    assert namespace["caller"]() == __file__  # type: ignore[operator]


@pytest.mark.models
def test_missing_dependencies_are_recorded_by_file() -> None:
    speed_up_earth2studio_import()
    import earth2studio.io
    from earth2studio.utils.imports import OptionalDependencyFailure

    package = Path(earth2studio.io.__file__).parents[1]
    # A few have a name.
    files = [Path(key) for key in OptionalDependencyFailure.failures if Path(key).is_absolute()]
    assert all(package in file.parents for file in files)
