"""Opening the store's database."""

from __future__ import annotations

from pathlib import Path

from deployments.store.conductor_view import ConductorStore
from tests.deployments.store.records import (
    new,
    submit,
)


def test_folder_of_a_sqlite_file_is_created(tmp_path: Path) -> None:
    store = ConductorStore(f"sqlite:///{tmp_path}/not/yet/there/executions.sqlite")
    submit(store, new())
    store.close()
