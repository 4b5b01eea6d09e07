"""What a running class may use: its id, its folder and progress reports.

The names are those of ``earth2studio.serve.server.Earth2Workflow``, whose own methods need Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deployments.runtime.failures import sanitize
from workflows.execution import Progress

MAX_MESSAGE_LENGTH = 500
MAX_STEPS = 2**53
"""The largest integer that every client's JSON parser reads exactly."""


def bounded_text(value: Any) -> str:
    """Return text short enough for a status; replaces what UTF-8 cannot encode."""
    return sanitize(str(value)[:MAX_MESSAGE_LENGTH])


def _bounded_step(value: Any) -> int:
    return min(max(int(value), 0), MAX_STEPS)


PROGRESS_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "progress": bounded_text,
    "current_step": _bounded_step,
    "total_steps": _bounded_step,
    "error_message": bounded_text,
}
"""The fields of Earth2Studio's ``WorkflowProgress``, and how each is read."""


def attach_run(
    instance: Any,
    execution_id: str,
    folder: Path,
    report: Callable[[Mapping[str, Any]], None],
    share: Callable[[], None] = lambda: None,
) -> None:
    """Set on an instance what a running class may use: its id, its folder and progress reports.

    Attributes of the instance precede the methods that its class inherits.

    Parameters
    ----------
    folder : Path
        Becomes the result.
    report : callable
        Takes progress as `parse_progress` returns it.
    share : callable, optional
        Called when the class asks for the folder, since it may use all files there.
    """

    def get_output_path(execution_id: str | None = None) -> Path:
        share()
        return folder

    def update_execution_data(execution_id: str, updates: Any) -> None:
        updates = updates if isinstance(updates, Mapping) else {"progress": updates}
        progress = updates.get("progress")
        if progress is not None:
            report(parse_progress(progress))

    attributes: dict[str, Any] = {
        "execution_id": execution_id,
        "get_output_path": get_output_path,
        "update_execution_data": update_execution_data,
    }
    if not hasattr(type(instance), "update_progress"):
        attributes["update_progress"] = lambda progress: report(parse_progress(progress))
    for name, value in attributes.items():
        with suppress(AttributeError):  # the class has slots, or a property of that name
            object.__setattr__(instance, name, value)


class ReportedProgress:
    """The progress that a class reports; fields that a report leaves out keep their values."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge a report."""
        # A new dict, since another thread reads it.
        self._values = {**self._values, **values}

    def progress(self, done: int, total: int) -> Progress:
        """Return the progress, with the output's counts where the class reports none."""
        values = self._values
        current, all_steps = values.get("current_step", done), values.get("total_steps", total)
        message = values.get("progress") or (
            f"{current} of {all_steps} steps" if all_steps else "running"
        )
        return Progress(
            message=str(message),
            current_step=_bounded_step(current),
            total_steps=_bounded_step(all_steps),
            error_message=values.get("error_message"),
        )


def parse_progress(progress: Any) -> dict[str, Any]:
    """Return the fields of a ``WorkflowProgress``, of a mapping or object like it, or of a text.

    Raises
    ------
    ValueError, TypeError
        If a step is not a number; raised in the class's own thread, where it reports.
    """
    if isinstance(progress, str):
        progress = {"progress": progress}
    elif not isinstance(progress, Mapping):
        progress = {name: getattr(progress, name, None) for name in PROGRESS_FIELDS}
    return {
        name: parse(progress[name])
        for name, parse in PROGRESS_FIELDS.items()
        if progress.get(name) is not None
    }
