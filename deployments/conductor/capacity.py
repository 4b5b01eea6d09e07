"""Counts executions against the limits of their workflows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from workflows.execution import Execution


class WorkflowCapacity:
    """The executions that are claimed and have not ended, and what each workflow may still run.

    An execution counts from its claim, slightly before it begins.

    Parameters
    ----------
    max_running : mapping of str to int
        Executions that run at once, by workflow; 1 for workflows that are not listed.
    on_free : callable
        Called when another execution may be claimed.
    """

    def __init__(self, max_running: Mapping[str, int], on_free: Callable[[], None]) -> None:
        self._max_running = max_running
        self._on_free = on_free
        self._workflows: dict[str, str | None] = {}
        """By execution id; None for executions that no longer count."""

    def __contains__(self, execution_id: str) -> bool:
        return execution_id in self._workflows

    @property
    def execution_ids(self) -> Collection[str]:
        """The claimed executions."""
        return self._workflows.keys()

    def take(self, execution: Execution) -> None:
        """Count an execution."""
        self._workflows[execution.execution_id] = execution.workflow

    def release(self, execution_id: str) -> None:
        """Stop counting an execution that no longer needs a replica of its workflow."""
        self._workflows[execution_id] = None
        self._on_free()

    def remove(self, execution_id: str) -> None:
        """Forget an execution that has ended."""
        self._workflows.pop(execution_id, None)
        self._on_free()

    @property
    def is_exhausted(self) -> bool:
        """Whether no workflow that is listed may run another execution now."""
        return self.full_workflows() >= self._max_running.keys()

    def full_workflows(self) -> set[str]:
        """Return the workflows of which no more executions may run now."""
        running = Counter(name for name in self._workflows.values() if name is not None)
        return {name for name, count in running.items() if count >= self._max_running.get(name, 1)}
