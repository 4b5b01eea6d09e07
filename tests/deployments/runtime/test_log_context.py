"""Lines of the log say which execution they are about, whoever writes them."""

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
    OURS,
    Lines,
    LogContextFilter,
    Threads,
    bind_execution,
    bridge_loguru,
    current_execution,
    execution_bound,
    set_stage,
)

ID, OTHER = "exec_1", "exec_12"
ours = logging.getLogger(OURS)


def about(record: logging.LogRecord) -> tuple[str | None, ...]:
    return tuple(getattr(record, key, None) for key in ("execution_id", "workflow", "stage"))


async def test_a_task_speaks_of_its_execution_and_others_do_not(records) -> None:
    async def life(execution_id: str) -> None:
        bind_execution(execution_id, "forecast", "inference")
        await asyncio.sleep(0)
        ours.info("said")
        await asyncio.to_thread(ours.info, "said in a thread")
        set_stage("package")
        await asyncio.create_task(asyncio.to_thread(ours.info, "said in a task of its own"))

    await asyncio.gather(life(ID), life(OTHER))
    ours.info("said in between")
    for execution_id in (ID, OTHER):
        of_it = [record for record in records if about(record)[0] == execution_id]
        assert [about(r)[1:] for r in of_it] == [("forecast", "inference")] * 2 + [
            ("forecast", "package")
        ]
        assert of_it[0].getMessage() == f"{execution_id}: said"
    assert about(records[-1]) == (None, None, None)
    assert records[-1].getMessage() == "said in between"


async def test_what_outlives_a_task_is_about_nothing_any_more(records) -> None:
    over, started = asyncio.Event(), []

    async def background() -> None:
        ours.info("begun")
        await over.wait()
        ours.info("long afterwards")

    async def call() -> None:
        bind_execution(ID)
        started.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        ours.info("done")

    await asyncio.create_task(call())
    over.set()
    await started[0]
    assert [about(record)[0] for record in records] == [ID, ID, None]


def test_a_line_that_names_its_execution_is_left_as_it_is(records) -> None:
    with execution_bound(ID):
        ours.info("%s failed at %d %%", ID, 3)
        ours.info("100 % of it", extra={"execution_id": ID})
        # Arguments that do not fit are the handler's to report, as ever.
        broken = logging.makeLogRecord({"msg": "%d broken", "args": ("x",)})
        assert LogContextFilter().filter(broken)
    assert records[0].getMessage() == f"{ID} failed at 3 %"
    assert records[1].getMessage() == f"{ID}: 100 % of it"
    assert current_execution() is None


def test_what_a_record_says_by_itself_stays(records) -> None:
    with execution_bound(ID, "forecast", "inference"):
        ours.info("said", extra={"execution_id": OTHER, "stage": "upload"})
    assert about(records[0]) == (OTHER, "forecast", "upload")


@pytest.mark.usefixtures("as_json")
def test_json_has_keys_and_leaves_the_words_alone(records, tmp_path: Path) -> None:
    with execution_bound(ID, "forecast", "inference"):
        ours.warning("said")
    assert records[0].getMessage() == "said"
    line = (tmp_path / "replica.log").read_text()
    assert f'"execution_id": "{ID}"' in line
    assert '"workflow": "forecast"' in line
    assert '"stage": "inference"' in line


def test_a_workflow_is_looked_for_only_when_there_is_a_line(records) -> None:
    asked = []

    def find() -> str:
        asked.append(1)
        ours.info("opening the plan")
        return "found"

    with execution_bound("exec_unknown"):
        bind_execution("exec_unknown", find_workflow=find)
        assert asked == []
        ours.info("said")
        ours.info("said again")
    assert asked == [1]
    assert [about(r)[1] for r in records] == [None, "found", "found"]


def test_whoever_does_not_know_the_workflow_remembers_it(records) -> None:
    with execution_bound("exec_known", "forecast"):
        pass
    with execution_bound("exec_known"):
        ours.info("said")
    assert about(records[0])[1] == "forecast"


def test_threads_of_a_library_belong_to_the_only_execution_at_work(records) -> None:
    two_at_work = threading.Barrier(2)

    def library(word: str) -> None:
        thread = threading.Thread(target=ours.info, args=(word,))
        thread.start()
        thread.join(10)

    def with_another() -> None:
        two_at_work.wait(10)
        library("whose?")
        two_at_work.wait(10)

    with (
        Threads(1, "model", libraries=True) as model,
        Threads(1, "fetch", libraries=True) as other,
    ):
        with execution_bound(ID, "forecast", "inference"):
            model.submit(library, "from a thread").result(10)
            both = [model.submit(with_another)]
        with execution_bound(OTHER):
            both.append(other.submit(with_another))
        for each in both:
            each.result(10)
        library("nobody is at work")
    assert about(records[0]) == (ID, "forecast", "inference")
    assert {record.getMessage(): about(record)[0] for record in records[1:]} == {
        "whose?": None,
        "nobody is at work": None,
    }


def test_what_is_printed_for_an_execution_becomes_lines(records) -> None:
    stream = io.StringIO()
    printed = Lines(stream)
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
    assert [(about(r)[0], r.getMessage()) for r in records] == [
        (ID, f"{ID}: two words"),
        (ID, f"{ID}: 100 %"),
        (ID, f"{ID}: half a line"),
        (OTHER, f"{OTHER}: of another"),
    ]
    assert printed.encoding == stream.encoding


def test_a_log_that_cannot_be_written_does_not_call_itself() -> None:
    stream = io.StringIO()
    printed = Lines(stream)

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("cannot be written", file=printed)

    broken, level = Broken(), ours.level
    ours.addHandler(broken)
    ours.setLevel(logging.INFO)
    try:
        with execution_bound(ID):
            print("said", file=printed)
    finally:
        ours.removeHandler(broken)
        ours.setLevel(level)
    assert stream.getvalue() == "cannot be written\n"


def test_outside_of_a_replica_nothing_is_changed() -> None:
    before = (sys.stdout, sys.stderr, list(logging.getLogger().handlers), list(ours.filters))
    with execution_bound(ID):
        assert (
            sys.stdout,
            sys.stderr,
            list(logging.getLogger().handlers),
            list(ours.filters),
        ) == before


@pytest.fixture
def _loguru() -> Iterator[None]:
    """Leave loguru to the tests that follow as they would find it."""
    yield
    loguru.remove()
    loguru.add(sys.stderr)


@pytest.mark.usefixtures("_loguru")
def test_what_loguru_is_told_goes_to_our_log(records) -> None:
    told: list[str] = []
    loguru.add(told.append)
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
    assert told == []
    assert (first.name, first.levelname) == (OURS, "INFO")
    assert first.getMessage() == f"{ID}: step 3 of {{}} %s"
    assert about(first) == (ID, "forecast", "inference")
    assert (second.getMessage(), second.levelname) == (f"{ID}: not written", "ERROR")
    assert second.exc_info is not None and isinstance(second.exc_info[1], OSError)
    assert (third.getMessage(), about(third)[0]) == ("between", None)
