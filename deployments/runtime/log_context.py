"""Attribute log lines to the execution, workflow and stage that they concern.

Code that starts to work for an execution calls `bind_execution` once. From then on all lines of
that task have ``execution_id``, ``workflow`` and ``stage``, also those of Serve and of a model's
library. JSON logs have them as keys; text logs have the id before a message that does not name it.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TextIO, TypeVar

from ray._common.formatters import JSONFormatter

P = ParamSpec("P")
R = TypeVar("R")

SERVE_LOGGER = "ray.serve"
"""Name of the logger that Serve writes to the replica's file."""
MAX_REMEMBERED = 256


@dataclass
class BoundExecution:
    """The execution that log lines concern."""

    execution_id: str
    workflow: str | None = None
    stage: str | None = None
    find_workflow: Callable[[], str | None] | None = None
    """Returns the workflow; called when a line is written, since it reads a file."""
    task: asyncio.Task[Any] | None = field(default=None, compare=False, repr=False)
    """Task that bound it. When it has ended, its context concerns no execution."""


_bound: ContextVar[BoundExecution | None] = ContextVar("bound_execution", default=None)
_workflows: OrderedDict[str, str] = OrderedDict()
"""Workflows of recent executions, for callers that know only the id."""
_in_pools: list[BoundExecution] = []
"""Executions running in pools whose libraries may start further threads."""


def bind_execution(
    execution_id: str,
    workflow: str | None = None,
    stage: str | None = None,
    *,
    find_workflow: Callable[[], str | None] | None = None,
) -> None:
    """Attribute all further lines of this task to an execution, including Serve's last line.

    `find_workflow` returns the workflow; it is called once, when the first line is written.
    """
    if not _is_installed():
        _install()
    if workflow is not None:
        _workflows[execution_id] = workflow
        while len(_workflows) > MAX_REMEMBERED:
            _workflows.popitem(last=False)
    task = asyncio.current_task() if _is_in_loop() else None
    _bound.set(BoundExecution(execution_id, workflow, stage, find_workflow, task))


@contextmanager
def execution_bound(
    execution_id: str, workflow: str | None = None, stage: str | None = None
) -> Iterator[None]:
    """Attribute the lines of the block to an execution."""
    previous = _bound.get()
    bind_execution(execution_id, workflow, stage)
    try:
        yield
    finally:
        _bound.set(previous)


def set_stage(stage: str | None) -> None:
    """Set the stage of the bound execution, if there is one."""
    if (bound := _bound.get()) is not None:
        bound.stage = stage


def current_execution() -> BoundExecution | None:
    """Return the execution that lines of this thread concern now, if any."""
    bound, in_loop = _bound.get(), _is_in_loop()
    if bound is not None:
        # Serve creates the background tasks of its handles at the first call, and keeps them.
        is_over = in_loop and bound.task is not None and bound.task.done()
        return None if is_over else bound
    # Threads that a library started have no context. If only one execution is running in this
    # process, they belong to it.
    in_pools = list(_in_pools)
    if in_loop or len({each.execution_id for each in in_pools}) != 1:
        return None
    return in_pools[0]


class ContextThreadPool(ThreadPoolExecutor):
    """Threads whose lines concern the execution of their caller.

    With `libraries`, this includes the lines of threads that the calls start.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str, *, libraries: bool = False):
        super().__init__(max_workers, thread_name_prefix)
        self._libraries = libraries

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call a function in a thread, with the context of the caller."""
        context = copy_context()

        def call() -> R:
            with _at_work() if self._libraries else nullcontext():
                return fn(*args, **kwargs)

        return super().submit(context.run, call)


@contextmanager
def _at_work() -> Iterator[None]:
    bound = _bound.get()
    if bound is None:
        yield
        return
    _in_pools.append(bound)
    try:
        yield
    finally:
        # Removes the first equal entry, which may be that of another member.
        _in_pools.remove(bound)


def bridge_loguru() -> None:
    """Send what Earth2Studio and users' classes log through loguru to this replica's log.

    Called before each execution: modules imported during one replace loguru's handlers.
    """
    try:
        from loguru import logger as loguru
    except ImportError:
        return
    serve_logger = logging.getLogger(SERVE_LOGGER)

    def forward(message: Any) -> None:
        record = message.record
        error = record["exception"]
        serve_logger.log(
            record["level"].no,
            "%s",
            record["message"].strip(),
            exc_info=error and (error.type, error.value, error.traceback),
        )

    loguru.remove()
    loguru.add(forward, level="INFO", format="{message}")


class LogContextFilter(logging.Filter):
    """Adds the bound execution to every record of a logger; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add execution, workflow and stage where the record does not have them."""
        bound = current_execution()
        if bound is not None:
            for key in ("execution_id", "stage"):
                if getattr(record, key, None) is None and (value := getattr(bound, key)):
                    setattr(record, key, str(value))
            if getattr(record, "workflow", None) is None and (workflow := _workflow_of(bound)):
                record.workflow = workflow
        execution_id = getattr(record, "execution_id", None)
        if execution_id and not _is_json() and execution_id not in f"{record.msg} {record.args}":
            record.msg = f"{execution_id}: {record.msg}"
        return True


class ForwardingHandler(logging.Handler):
    """Forwards the records of other libraries to Serve's logger, which writes the file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record."""
        logging.getLogger(SERVE_LOGGER).handle(record)


class StdoutCapture:
    """Replaces a stream, stdout or stderr: lines printed for an execution go to the log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; of a progress bar, which uses carriage returns, only the final state."""
        bound = current_execution()
        if bound is None or getattr(self._thread, "is_logging", False):
            return self._stream.write(text)
        start, execution_id = getattr(self._thread, "unfinished", ("", None))
        *lines, rest = f"{start if execution_id == bound.execution_id else ''}{text}".split("\n")
        self._thread.unfinished = rest.rpartition("\r")[2], bound.execution_id
        # The logging module reports its own errors on stderr. They must not be logged again.
        self._thread.is_logging = True
        try:
            for line in lines:
                if final := line.rstrip().rpartition("\r")[2]:
                    logging.getLogger(SERVE_LOGGER).info("%s", final)
        finally:
            self._thread.is_logging = False
        return len(text)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _workflow_of(bound: BoundExecution) -> str | None:
    if bound.workflow is None:
        bound.workflow = _workflows.get(bound.execution_id)
    if bound.workflow is None and (find := bound.find_workflow) is not None:
        # Cleared before the call, which may itself write a line.
        bound.find_workflow = None
        bound.workflow = find()
    return bound.workflow


def _file_handlers() -> list[logging.handlers.MemoryHandler]:
    """Return the handlers of this replica's log file; none outside of Serve."""
    handlers = logging.getLogger(SERVE_LOGGER).handlers
    return [each for each in handlers if isinstance(each, logging.handlers.MemoryHandler)]


def _is_json() -> bool:
    return any(
        each.target is not None and isinstance(each.target.formatter, JSONFormatter)
        for each in _file_handlers()
    )


def _is_installed() -> bool:
    return bool(logging.getLogger(SERVE_LOGGER).filters)


def _install() -> None:
    """Attribute the lines of this process if it is a replica."""
    if not _file_handlers():
        return
    logging.getLogger(SERVE_LOGGER).addFilter(LogContextFilter())
    logging.getLogger().addHandler(ForwardingHandler())
    logging.captureWarnings(True)
    sys.stdout, sys.stderr = StdoutCapture(sys.stdout), StdoutCapture(sys.stderr)
    bridge_loguru()
