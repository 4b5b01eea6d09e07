"""What a running class may use: its id, its folder and progress reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.custom_workflow.run_interface import ReportedProgress, attach_run

ID = "exec_1_00000000"


class Plain:
    def __call__(self, io: Any) -> None: ...


class Slotted:
    __slots__ = ("seen",)

    def __call__(self, io: Any) -> None: ...


class SlottedWithId:
    __slots__ = ("execution_id",)

    def __call__(self, io: Any) -> None: ...


class WithOwnMethods:
    """Has members of these names, for use elsewhere."""

    execution_id = "none"

    def __init__(self) -> None:
        self.reports: list[object] = []

    def __call__(self, io: Any) -> None: ...

    def update_progress(self, progress: object) -> None:
        self.reports.append(progress)
        self.update_execution_data(self.execution_id, progress)

    def update_execution_data(self, execution_id: str, updates: object) -> None:
        raise RuntimeError("wants a Redis")

    def get_output_path(self, execution_id: str) -> Path:
        raise RuntimeError("wants a folder")


class WithProperty:
    def __call__(self, io: Any) -> None: ...

    @property
    def execution_id(self) -> str:
        return "mine"


Reports = list[dict[str, Any]]


def attached(instance: Any, folder: Path = Path("/results")) -> Reports:
    reports: Reports = []
    attach_run(instance, ID, folder, lambda values: reports.append(dict(values)))
    return reports


def test_any_class_receives_id_folder_and_progress(tmp_path: Path) -> None:
    instance: Any = Plain()
    reports = attached(instance, tmp_path)
    assert instance.execution_id == ID
    assert instance.get_output_path() == instance.get_output_path(ID) == tmp_path
    instance.update_progress({"progress": "started", "current_step": 1, "else": 5})
    instance.update_execution_data(ID, {"metadata": {"a": 1}})
    instance.update_execution_data(ID, {"progress": {"total_steps": 3}})
    assert reports == [{"progress": "started", "current_step": 1}, {"total_steps": 3}]


def test_a_class_keeps_its_own_update_progress(tmp_path: Path) -> None:
    instance = WithOwnMethods()
    reports = attached(instance, tmp_path)
    instance.update_progress("started")
    assert instance.reports == ["started"]
    assert reports == [{"progress": "started"}]
    assert instance.execution_id == ID
    assert instance.get_output_path(ID) == tmp_path


def test_each_execution_has_its_own_id_folder_and_progress(tmp_path: Path) -> None:
    instance: Any = Plain()
    first = attached(instance, tmp_path / "first")
    second: Reports = []
    attach_run(instance, "another", tmp_path / "second", lambda values: second.append(dict(values)))
    instance.update_progress("started")
    assert (first, second) == ([], [{"progress": "started"}])
    assert instance.get_output_path("another") == tmp_path / "second"
    assert instance.execution_id == "another"


def test_a_class_with_slots_lacks_attributes_without_a_slot() -> None:
    instance = Slotted()
    assert attached(instance) == []
    assert not hasattr(instance, "execution_id")


def test_a_class_with_slots_receives_attributes_with_a_slot() -> None:
    instance = SlottedWithId()
    assert attached(instance) == []
    assert instance.execution_id == ID  # type: ignore[attr-defined]


def test_a_property_of_the_class_is_kept() -> None:
    instance: Any = WithProperty()
    attached(instance)
    assert instance.execution_id == "mine"
    assert instance.get_output_path() == Path("/results")


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ("started", {"progress": "started"}),
        ({"current_step": 2, "total_steps": None}, {"current_step": 2}),
        (
            SimpleNamespace(progress="started", current_step=2),
            {"progress": "started", "current_step": 2},
        ),
        ({"current_step": "2", "progress": 5}, {"current_step": 2, "progress": "5"}),
        ({"error_message": "one file is missing"}, {"error_message": "one file is missing"}),
    ],
)
def test_progress_is_reported_in_several_forms(progress: Any, expected: dict[str, Any]) -> None:
    instance: Any = Plain()
    reports = attached(instance)
    instance.update_progress(progress)
    assert reports == [expected]


def test_a_step_that_is_not_a_number_raises_in_the_class() -> None:
    instance: Any = Plain()
    reports = attached(instance)
    with pytest.raises(ValueError, match="first"):
        instance.update_progress({"current_step": "first"})
    assert reports == []


def progress(*reports: Mapping[str, Any], done: int = 0, total: int = 0) -> tuple[Any, ...]:
    reported = ReportedProgress()
    for report in reports:
        reported.update(report)
    found = reported.progress(done, total)
    return found.message, found.current_step, found.total_steps, found.error_message


def test_reports_are_merged() -> None:
    assert progress(
        {"progress": "started", "total_steps": 9}, {"current_step": 1}, {"current_step": 2}
    ) == ("started", 2, 9, None)
    assert progress({"progress": "started"}, {"progress": "done"}, {"error_message": "odd"}) == (
        "done",
        0,
        0,
        "odd",
    )


def test_steps_are_counted_in_the_output_where_the_class_reports_none() -> None:
    assert progress(done=3, total=8) == ("3 of 8 steps", 3, 8, None)
    assert progress({"progress": "started"}, done=3, total=8) == ("started", 3, 8, None)
    assert progress({"current_step": 5}, done=3, total=8) == ("5 of 8 steps", 5, 8, None)
    assert progress() == ("running", 0, 0, None)


def test_steps_are_never_negative() -> None:
    assert progress({"current_step": -1, "total_steps": -1})[1:3] == (0, 0)
