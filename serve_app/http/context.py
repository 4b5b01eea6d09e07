"""What the routes share: options, the store, the workflows, long polls and the nudge."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, field_validator

from deployments.azure.blobs import BlobResultsOptions
from deployments.runtime.log_context import bind_execution
from deployments.runtime.metrics import RAY, Recorder
from deployments.store.executions import ExecutionStore
from serve_app.files.serving import Results
from serve_app.http.custom_workflows import CustomWorkflows
from serve_app.http.long_poll import ChangeWatcher
from serve_app.http.status_cache import Observation, StatusCache
from workflows.base import OutputFormat, Workflow
from workflows.delivery import Container, DeliveryRules
from workflows.errors import ExecutionNotFound, WorkflowNotFound
from workflows.execution import Execution
from workflows.grids import Grid, LambertGrid

P = ParamSpec("P")
T = TypeVar("T")

Sign = Callable[[Container, str, str, float], Awaitable[str]]
"""Takes container, workflow, execution and seconds; gives a URL with a signature."""

_EXECUTION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class IngressOptions(BaseModel):
    """What one ingress replica needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store_url: str = Field(repr=False)
    """May hold a password, so it is kept out of logs."""
    results_dir: Path
    """Folder of the results, unless they lie in a container."""
    blob_results: BlobResultsOptions | None = None
    """The container that they lie in."""
    exposed: tuple[str, ...]
    """Workflows that are listed and can be called."""
    warmup: tuple[str, ...] = ()
    """Workflows that can be called but are not listed."""
    custom: dict[str, OutputFormat] = {}
    """Workflows of users' own among them, with the format of results where a class has no say."""
    grid: Grid = Grid()
    """Grid of the global model."""
    regional_grid: LambertGrid = LambertGrid()
    max_queued: int = Field(20, ge=1)
    max_output_bytes: int = Field(gt=0)
    """A request whose estimated result is larger is refused."""
    quota_bytes: int | None = Field(None, gt=0)
    """What all results may take together; None is no bound."""
    min_free_bytes: int = Field(250 * 10**6, ge=0)
    """What stays free of the disk: the execution store and logs live on one too."""
    max_body_bytes: int = Field(2**20, ge=1)
    validation_limit_s: float = Field(default=10.0, gt=0)
    """What a class of a user's own may take to check parameters."""
    tokens_file: Path | None = None
    """Bearer tokens, see `serve_app.auth`; None asks for none."""
    allow_origins: tuple[str, ...] = ()
    """Origins of web pages that may call; none by default."""
    delivery: DeliveryRules = DeliveryRules()
    """Where results may go besides this server."""
    signed_url_s: float | None = None
    """How long a link to an execution's blobs is valid; None makes none."""
    components: dict[str, tuple[str, ...]] = {}
    """Workflow to the models and data sources whose readiness it needs."""

    @property
    def callable(self) -> tuple[str, ...]:
        """Names of all workflows that can be called."""
        return (*self.exposed, *self.warmup)

    @field_validator("results_dir", "tokens_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"an absolute path is needed, not {value}")
        return value


@dataclass(frozen=True)
class Context:
    """What every route can reach, one per replica."""

    options: IngressOptions
    store: ExecutionStore
    workflows: Mapping[str, Workflow]
    """The callable ones of ours, exposed or warm-up, by name."""
    custom: CustomWorkflows
    """The callable ones of users' own."""
    observer: StatusCache
    changes: ChangeWatcher
    results: Results
    """Opens what executions have made."""
    sign: Sign | None
    """Gives a link to the blobs of an execution; None if this server makes none."""
    nudge: Callable[[], None]
    """Tells the Conductor that there is something to do; returns at once and cannot fail."""
    metrics: Recorder = RAY
    _writer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "store-writes"), init=False, repr=False
    )

    async def read(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Read from the store: at once on SQLite, where a thread costs more than the query."""
        if self.store.is_sqlite:
            return call(*args, **kwargs)
        return await asyncio.to_thread(call, *args, **kwargs)

    async def write(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Write to the store, in a thread: the write lock may have to be waited for.

        In one thread: more would only wait for each other, and keep the event loop from running.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, partial(call, *args, **kwargs))

    def check_workflow(self, name: str) -> None:
        """Refuse a workflow that cannot be called.

        Raises
        ------
        WorkflowNotFound
            If it does not exist or is hidden; a client cannot tell which.
        """
        if name not in self.workflows and name not in self.custom:
            raise WorkflowNotFound(name)

    async def workflow(self, name: str) -> Workflow:
        """Give a callable workflow.

        Raises
        ------
        WorkflowNotFound
            As `check_workflow`.
        WorkflowUnavailable
            If it is a user's own and nothing is known of its class yet.
        """
        self.check_workflow(name)
        if name in self.workflows:
            return self.workflows[name]
        return await self.read(self.custom.look_up, name)

    def check(self, workflow: str, execution_id: str) -> None:
        """Refuse hidden workflows and ids that cannot exist, before the store is asked.

        Raises
        ------
        WorkflowNotFound, ExecutionNotFound
        """
        self.check_workflow(workflow)
        if not _EXECUTION_ID.fullmatch(execution_id):
            raise ExecutionNotFound(execution_id)
        bind_execution(execution_id, workflow)

    async def execution(self, workflow: str, execution_id: str) -> Execution:
        """Read one execution of a callable workflow."""
        self.check(workflow, execution_id)
        return await self.read(self.store.get, workflow, execution_id)

    async def observe(self, workflow: str, execution_id: str) -> Observation:
        """Tell the status of one execution of a callable workflow."""
        self.check(workflow, execution_id)
        return await self.read(self.observer.look, workflow, execution_id)


def context_of(request: Request) -> Context:
    """Give the context of the application that answers."""
    context: Context = request.app.state.context
    return context
