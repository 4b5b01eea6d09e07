"""What the log's lines are about: each says which execution, workflow and stage it concerns.

Code that begins to work for an execution calls `bind_execution` once. From then on all lines of
that task have ``execution_id``, ``workflow`` and ``stage``, also those of Serve and of a model's
library: in JSON as keys of their own, in text the id before a message that does not name it.
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

OURS = "ray.serve"
"""Name of the logger that Serve writes to the replica's file."""
REMEMBERED = 256


@dataclass
class Subject:
    """An execution that lines are about."""

    execution_id: str
    workflow: str | None = None
    stage: str | None = None
    find_workflow: Callable[[], str | None] | None = None
    """Gives the workflow when a line is written; for those who would have to read a file."""
    task: asyncio.Task[Any] | None = field(default=None, compare=False, repr=False)
    """Who said so. What it has started may live longer, but that is about nothing any more."""


_subject: ContextVar[Subject | None] = ContextVar("subject", default=None)
_workflows: OrderedDict[str, str] = OrderedDict()
"""Of executions that were spoken of lately, for callers that do not know."""
_at_work: list[Subject] = []
"""What is computed in threads whose libraries may start further ones."""


def bind_execution(
    execution_id: str,
    workflow: str | None = None,
    stage: str | None = None,
    *,
    find_workflow: Callable[[], str | None] | None = None,
) -> None:
    """Let the rest of this task's lines be about an execution; also what Serve says of its end."""
    if not _is_installed():
        _install()
    if workflow is not None:
        _workflows[execution_id] = workflow
        while len(_workflows) > REMEMBERED:
            _workflows.popitem(last=False)
    task = asyncio.current_task() if _is_in_loop() else None
    _subject.set(Subject(execution_id, workflow, stage, find_workflow, task))


@contextmanager
def execution_bound(
    execution_id: str, workflow: str | None = None, stage: str | None = None
) -> Iterator[None]:
    """Let lines be about an execution for a while, in a task that lives longer."""
    before = _subject.get()
    bind_execution(execution_id, workflow, stage)
    try:
        yield
    finally:
        _subject.set(before)


def set_stage(stage: str | None) -> None:
    """Say that the execution which is spoken of has come to a stage."""
    if (subject := _subject.get()) is not None:
        subject.stage = stage


def current_execution() -> Subject | None:
    """Give what lines of this thread are about now; None if no execution."""
    subject, in_loop = _subject.get(), _is_in_loop()
    if subject is not None:
        # Serve makes its handles' background tasks with the first call, and keeps them.
        is_over = in_loop and subject.task is not None and subject.task.done()
        return None if is_over else subject
    # A thread that a library has started knows no context, but if only one execution is at work
    # in this process, it is that.
    at_work = list(_at_work)
    if in_loop or len({each.execution_id for each in at_work}) != 1:
        return None
    return at_work[0]


class Threads(ThreadPoolExecutor):
    """Threads that speak of what their caller speaks of.

    Parameters
    ----------
    libraries : bool
        Whether what runs here may start threads of its own, whose lines then belong to it, too.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str, *, libraries: bool = False):
        super().__init__(max_workers, thread_name_prefix)
        self._libraries = libraries

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call in a thread."""
        context = copy_context()

        def call() -> R:
            with _at_work_here() if self._libraries else nullcontext():
                return fn(*args, **kwargs)

        return super().submit(context.run, call)


@contextmanager
def _at_work_here() -> Iterator[None]:
    subject = _subject.get()
    if subject is None:
        yield
        return
    _at_work.append(subject)
    try:
        yield
    finally:
        # Another one that is equal will do: two members of an execution are.
        _at_work.remove(subject)


def bridge_loguru() -> None:
    """Send what Earth2Studio and user's classes tell loguru to this replica's log.

    Done before each execution: modules that are imported on the way replace the handlers.
    """
    try:
        from loguru import logger as loguru
    except ImportError:
        return
    ours = logging.getLogger(OURS)

    def pass_on(message: Any) -> None:
        record = message.record
        error = record["exception"]
        ours.log(
            record["level"].no,
            "%s",
            record["message"].strip(),
            exc_info=error and (error.type, error.value, error.traceback),
        )

    loguru.remove()
    loguru.add(pass_on, level="INFO", format="{message}")


class LogContextFilter(logging.Filter):
    """Adds to every record of a logger what it is about; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Name the execution, unless the record does so by itself."""
        subject = current_execution()
        if subject is not None:
            for key in ("execution_id", "stage"):
                if getattr(record, key, None) is None and (value := getattr(subject, key)):
                    setattr(record, key, str(value))
            if getattr(record, "workflow", None) is None and (found := _workflow_of(subject)):
                record.workflow = found
        execution_id = getattr(record, "execution_id", None)
        if execution_id and not _is_json() and execution_id not in f"{record.msg} {record.args}":
            record.msg = f"{execution_id}: {record.msg}"
        return True


class LoguruHandler(logging.Handler):
    """Hands what other libraries log to Serve's logger, which alone writes to the file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        logging.getLogger(OURS).handle(record)


class Lines:
    """Stands for stdout or stderr: what is printed for an execution becomes lines of the log.

    Parameters
    ----------
    stream : file
        Takes all else.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; of a progress bar only what a line has come to."""
        subject = current_execution()
        if subject is None or getattr(self._thread, "logs", False):
            return self._stream.write(text)
        begun, of = getattr(self._thread, "begun", ("", None))
        *whole, rest = f"{begun if of == subject.execution_id else ''}{text}".split("\n")
        self._thread.begun = rest.rpartition("\r")[2], subject.execution_id
        # What goes wrong with writing the log is told on stderr: it must not come back.
        self._thread.logs = True
        try:
            for line in whole:
                if told := line.rstrip().rpartition("\r")[2]:
                    logging.getLogger(OURS).info("%s", told)
        finally:
            self._thread.logs = False
        return len(text)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _workflow_of(subject: Subject) -> str | None:
    if subject.workflow is None:
        subject.workflow = _workflows.get(subject.execution_id)
    if subject.workflow is None and (find := subject.find_workflow) is not None:
        # Once: it may itself write a line.
        subject.find_workflow = None
        subject.workflow = find()
    return subject.workflow


def _files() -> list[logging.handlers.MemoryHandler]:
    """Give what writes to the file of this replica; nothing where Serve does not run."""
    handlers = logging.getLogger(OURS).handlers
    return [each for each in handlers if isinstance(each, logging.handlers.MemoryHandler)]


def _is_json() -> bool:
    return any(
        each.target is not None and isinstance(each.target.formatter, JSONFormatter)
        for each in _files()
    )


def _is_installed() -> bool:
    return bool(logging.getLogger(OURS).filters)


def _install() -> None:
    """Do so with all lines of this process, if it is a replica."""
    if not _files():
        return
    logging.getLogger(OURS).addFilter(LogContextFilter())
    logging.getLogger().addHandler(LoguruHandler())
    logging.captureWarnings(True)
    sys.stdout, sys.stderr = Lines(sys.stdout), Lines(sys.stderr)
    bridge_loguru()
