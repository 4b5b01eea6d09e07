"""Log lines have the execution that they concern, no matter which code writes them."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger as loguru

from deployments.runtime.log_context import (
    SERVE_LOGGER,
    ContextThreadPool,
    LogContextFilter,
    StdoutCapture,
    bind_execution,
    bridge_loguru,
    current_execution,
    execution_bound,
    set_stage,
)

ID, OTHER = "exec_1", "exec_12"
serve_logger = logging.getLogger(SERVE_LOGGER)


def context_of(record: logging.LogRecord) -> tuple[str | None, ...]:
    return tuple(getattr(record, key, None) for key in ("execution_id", "workflow", "stage"))


async def test_lines_of_a_task_concern_its_execution(records) -> None:
    async def run(execution_id: str) -> None:
        bind_execution(execution_id, "forecast", "inference")
        await asyncio.sleep(0)
        serve_logger.info("logged")
        await asyncio.to_thread(serve_logger.info, "from a thread")
        set_stage("package")
        await asyncio.create_task(asyncio.to_thread(serve_logger.info, "from another task"))

    await asyncio.gather(run(ID), run(OTHER))
    serve_logger.info("in between")
    for execution_id in (ID, OTHER):
        own = [record for record in records if context_of(record)[0] == execution_id]
        assert [context_of(r)[1:] for r in own] == [("forecast", "inference")] * 2 + [
            ("forecast", "package")
        ]
        assert own[0].getMessage() == f"{execution_id}: logged"
    assert context_of(records[-1]) == (None, None, None)
    assert records[-1].getMessage() == "in between"


async def test_lines_of_a_task_that_outlives_its_parent_concern_no_execution(records) -> None:
    done, started = asyncio.Event(), []

    async def background() -> None:
        serve_logger.info("started")
        await done.wait()
        serve_logger.info("long afterwards")

    async def call() -> None:
        bind_execution(ID)
        started.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        serve_logger.info("done")

    await asyncio.create_task(call())
    done.set()
    await started[0]
    assert [context_of(record)[0] for record in records] == [ID, ID, None]


def test_a_line_that_names_its_execution_is_unchanged(records) -> None:
    with execution_bound(ID):
        serve_logger.info("%s failed at %d %%", ID, 3)
        serve_logger.info("100 % of it", extra={"execution_id": ID})
        # The handler reports arguments that do not fit, as usual.
        broken = logging.makeLogRecord({"msg": "%d broken", "args": ("x",)})
        assert LogContextFilter().filter(broken)
    assert records[0].getMessage() == f"{ID} failed at 3 %"
    assert records[1].getMessage() == f"{ID}: 100 % of it"
    assert current_execution() is None


def test_attributes_of_a_record_are_not_overwritten(records) -> None:
    with execution_bound(ID, "forecast", "inference"):
        serve_logger.info("logged", extra={"execution_id": OTHER, "stage": "upload"})
    assert context_of(records[0]) == (OTHER, "forecast", "upload")


@pytest.mark.usefixtures("as_json")
def test_json_has_keys_and_the_original_message(records, tmp_path: Path) -> None:
    with execution_bound(ID, "forecast", "inference"):
        serve_logger.warning("logged")
    assert records[0].getMessage() == "logged"
    line = (tmp_path / "replica.log").read_text()
    assert f'"execution_id": "{ID}"' in line
    assert '"workflow": "forecast"' in line
    assert '"stage": "inference"' in line


def test_the_workflow_is_looked_up_once_when_a_line_is_written(records) -> None:
    calls = []

    def find() -> str:
        calls.append(1)
        serve_logger.info("opening the plan")
        return "found"

    with execution_bound("exec_unknown"):
        bind_execution("exec_unknown", find_workflow=find)
        assert calls == []
        serve_logger.info("logged")
        serve_logger.info("logged again")
    assert calls == [1]
    assert [context_of(r)[1] for r in records] == [None, "found", "found"]


def test_the_workflow_of_an_execution_is_remembered(records) -> None:
    with execution_bound("exec_known", "forecast"):
        pass
    with execution_bound("exec_known"):
        serve_logger.info("logged")
    assert context_of(records[0])[1] == "forecast"


def test_threads_of_a_library_concern_the_only_execution_at_work(records) -> None:
    two_at_work = threading.Barrier(2)

    def library(word: str) -> None:
        thread = threading.Thread(target=serve_logger.info, args=(word,))
        thread.start()
        thread.join(10)

    def with_another() -> None:
        two_at_work.wait(10)
        library("whose?")
        two_at_work.wait(10)

    with (
        ContextThreadPool(1, "model", libraries=True) as model,
        ContextThreadPool(1, "fetch", libraries=True) as other,
    ):
        with execution_bound(ID, "forecast", "inference"):
            model.submit(library, "from a thread").result(10)
            both = [model.submit(with_another)]
        with execution_bound(OTHER):
            both.append(other.submit(with_another))
        for each in both:
            each.result(10)
        library("nobody is at work")
    assert context_of(records[0]) == (ID, "forecast", "inference")
    assert {record.getMessage(): context_of(record)[0] for record in records[1:]} == {
        "whose?": None,
        "nobody is at work": None,
    }


def test_text_printed_for_an_execution_is_logged(records) -> None:
    stream = io.StringIO()
    printed = StdoutCapture(stream)
    print("before", file=printed)
    with execution_bound(ID):
        print("two", "words", file=printed)
        printed.write("\r 10 %")
        printed.write("\r 50 %\r100 %\nhalf a ")
        printed.write("line\n\n")
        printed.write("never ended")
    with execution_bound(OTHER):
        print("of another", file=printed)
    print("after", file=printed)
    assert stream.getvalue() == "before\nafter\n"
    assert [(context_of(r)[0], r.getMessage()) for r in records] == [
        (ID, f"{ID}: two words"),
        (ID, f"{ID}: 100 %"),
        (ID, f"{ID}: half a line"),
        (OTHER, f"{OTHER}: of another"),
    ]
    assert printed.encoding == stream.encoding


def test_errors_of_the_logging_module_are_not_logged_again() -> None:
    stream = io.StringIO()
    printed = StdoutCapture(stream)

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("cannot be written", file=printed)

    broken, level = Broken(), serve_logger.level
    serve_logger.addHandler(broken)
    serve_logger.setLevel(logging.INFO)
    try:
        with execution_bound(ID):
            print("logged", file=printed)
    finally:
        serve_logger.removeHandler(broken)
        serve_logger.setLevel(level)
    assert stream.getvalue() == "cannot be written\n"


def test_outside_of_a_replica_nothing_is_installed() -> None:
    before = (
        sys.stdout,
        sys.stderr,
        list(logging.getLogger().handlers),
        list(serve_logger.filters),
    )
    with execution_bound(ID):
        assert (
            sys.stdout,
            sys.stderr,
            list(logging.getLogger().handlers),
            list(serve_logger.filters),
        ) == before


@pytest.fixture
def _loguru() -> Iterator[None]:
    """Restore loguru after the test."""
    yield
    loguru.remove()
    loguru.add(sys.stderr)


@pytest.mark.usefixtures("_loguru")
def test_loguru_messages_go_to_the_log_of_serve(records) -> None:
    messages: list[str] = []
    loguru.add(messages.append)
    bridge_loguru()
    with execution_bound(ID, "forecast", "inference"):
        loguru.info("step {} of {{}} %s", 3)
        loguru.debug("a detail")
        try:
            raise OSError("no disk")
        except OSError:
            loguru.exception("not written\n")
    loguru.warning("between")
    first, second, third = records
    assert messages == []
    assert (first.name, first.levelname) == (SERVE_LOGGER, "INFO")
    assert first.getMessage() == f"{ID}: step 3 of {{}} %s"
    assert context_of(first) == (ID, "forecast", "inference")
    assert (second.getMessage(), second.levelname) == (f"{ID}: not written", "ERROR")
    assert second.exc_info is not None and isinstance(second.exc_info[1], OSError)
    assert (third.getMessage(), context_of(third)[0]) == ("between", None)
