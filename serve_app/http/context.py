"""State that all routes of one ingress replica share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from fastapi import Request

from deployments.runtime.log_context import bind_execution
from deployments.runtime.metrics import Recorder
from deployments.store.executions import ExecutionStore
from serve_app.files.absence import Listings
from serve_app.files.protocols import Results
from serve_app.http.custom_workflows import CustomChecks
from serve_app.http.described_workflows import DescribedWorkflows
from serve_app.http.long_poll import ChangeWatcher
from serve_app.http.options import IngressOptions
from serve_app.http.status_cache import StatusCache, StatusSnapshot
from workflows.base import Workflow
from workflows.delivery import Container
from workflows.errors import ExecutionNotFound, WorkflowNotFound
from workflows.execution import Execution

P = ParamSpec("P")
T = TypeVar("T")

Sign = Callable[[Container, str, str, float], Awaitable[str]]
"""Takes container, workflow, execution id and lifetime in seconds; returns a signed URL."""

_EXECUTION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Context:
    """State that all routes of one ingress replica share."""

    options: IngressOptions
    store: ExecutionStore
    workflows: Mapping[str, Workflow]
    """Callable built-in workflows, by name."""
    described: DescribedWorkflows
    """Callable forecasts that are declared, and custom workflows."""
    custom: CustomChecks
    """Has the classes of custom workflows check parameters."""
    statuses: StatusCache
    changes: ChangeWatcher
    results: Results
    """Opens result files."""
    sign: Sign | None
    """Signs a link to an execution's blobs; None if this server issues no links."""
    nudge: Callable[[], None]
    """Asks the Conductor to look at the queue; returns at once and never raises."""
    metrics: Recorder
    listings: Listings = field(default_factory=Listings)
    """Knows which files a result had."""
    _writer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "store-writes"), init=False, repr=False
    )

    async def read(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a call that reads the store.

        SQLite is read on the event loop, because a thread costs more than the query.
        """
        if self.store.is_sqlite:
            return call(*args, **kwargs)
        return await asyncio.to_thread(call, *args, **kwargs)

    async def write(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a call that writes to the store, made in a thread.

        A write may have to wait for the store's lock. All writes share one thread, since more
        threads would only wait for each other.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, partial(call, *args, **kwargs))

    def check_workflow(self, name: str) -> None:
        """Raise if a workflow is not callable.

        Raises
        ------
        WorkflowNotFound
            If it does not exist or is not exposed; a client cannot tell which.
        """
        if name not in self.workflows and name not in self.described:
            raise WorkflowNotFound(name)

    async def workflow(self, name: str) -> Workflow:
        """Return a callable workflow.

        Raises
        ------
        WorkflowNotFound
            See `check_workflow`.
        WorkflowUnavailable
            If its model or class has not described itself yet.
        """
        self.check_workflow(name)
        if name in self.workflows:
            return self.workflows[name]
        return await self.read(self.described.look_up, name)

    def check(self, workflow: str, execution_id: str) -> None:
        """Raise if a workflow is not callable or an execution id is malformed.

        The store is not read. From here on, log lines of this request name the execution.

        Raises
        ------
        WorkflowNotFound, ExecutionNotFound
        """
        self.check_workflow(workflow)
        if not _EXECUTION_ID.fullmatch(execution_id):
            raise ExecutionNotFound(execution_id)
        bind_execution(execution_id, workflow)

    async def was_deleted(self, execution_id: str) -> bool:
        """Return whether an execution was removed not long ago; False if its id is malformed.

        PostgreSQL refuses some malformed ids, such as those with NUL, with an error.
        """
        if not _EXECUTION_ID.fullmatch(execution_id):
            return False
        return await self.read(self.store.was_deleted, execution_id)

    async def execution(self, workflow: str, execution_id: str) -> Execution:
        """Return the full record of an execution; raises as `check` does."""
        self.check(workflow, execution_id)
        return await self.read(self.store.get, workflow, execution_id)

    async def status(self, workflow: str, execution_id: str) -> StatusSnapshot:
        """Return the current status of an execution; raises as `check` does."""
        self.check(workflow, execution_id)
        return await self.read(self.statuses.get, workflow, execution_id)


def context_of(request: Request) -> Context:
    """Return the context of the application that handles a request."""
    context: Context = request.app.state.context
    return context
