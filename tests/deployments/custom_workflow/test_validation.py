"""A replica checks parameters as soon as its class is imported, even if it cannot be created."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from deployments.custom_workflow.deployment import CustomWorkflow
from deployments.custom_workflow.earth2studio_shim import FOLDERS
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.results.options import StorageOptions
from workflows.errors import ModelUnavailable

IMPORTING, MAY_END = threading.Event(), threading.Event()
"""The module of the class below sets the first and waits for the second."""

MODULE = f"""
from {__name__} import IMPORTING, MAY_END

IMPORTING.set()
assert MAY_END.wait(60)

class Storms:
    def __init__(self):
        raise OSError("no weights")

    def __call__(self, io, n_steps: int = 1): ...
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the variables that `isolate_import` sets permanently."""
    for name in (*FOLDERS, "EARTH2STUDIO_API_ACTIVE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


async def replica(path: str, folder: Path) -> Any:
    storage = StorageOptions(results_dir=folder / "results", work_dir=folder / "work")
    options = CustomWorkflowOptions(
        path=path, name="Storms", name_is_given=True, storage=storage, max_output_bytes=1
    )
    made = CustomWorkflow.func_or_class.__new__(CustomWorkflow.func_or_class)
    await made.__init__(options)
    return made


async def test_a_check_waits_for_the_import_of_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_slow_storms.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = await replica("users_slow_storms:Storms", tmp_path)
    check = asyncio.create_task(made.validate({"n_steps": "many"}))
    assert await asyncio.to_thread(IMPORTING.wait, 60)
    assert not check.done()
    MAY_END.set()
    (problem,) = await asyncio.wait_for(check, 60)
    assert problem.field == "parameters.n_steps"
    assert await made.validate({"n_steps": 2}) == []


async def test_a_class_that_cannot_be_imported_checks_nothing(tmp_path: Path) -> None:
    made = await replica("no_such_module:Storms", tmp_path)
    with pytest.raises(ModelUnavailable, match="could not be loaded: .*no_such_module"):
        await asyncio.wait_for(made.validate({}), 60)
