"""How a user's class is called: awaited, with an event loop, or refused when it is loaded."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from signal import signal as handle
from typing import Any

import pytest

from deployments.custom_workflow.calling import check_callable, provide_event_loop, run_to_end
from deployments.custom_workflow.user_class import UserClass


class Plain:
    def __call__(self, io: Any) -> None:
        io.append("called")


class Asynchronous:
    async def __call__(self, io: Any) -> None:
        await asyncio.sleep(0)
        io.append("called")


class ReturnsAnAwaitable:
    def __call__(self, io: Any) -> Any:
        return Asynchronous()(io)


class AsksForALoop:
    """As libraries do that were written for the main thread."""

    def __call__(self, io: Any) -> None:
        loop = asyncio.get_event_loop()
        loop.run_until_complete(Asynchronous()(io))


class RunsItsOwnLoop:
    def __call__(self, io: Any) -> None:
        asyncio.run(Asynchronous()(io))


class LeavesATask:
    async def __call__(self, io: Any) -> None:
        self.left = asyncio.ensure_future(asyncio.Event().wait())
        io.append("called")


@pytest.mark.parametrize(
    "workflow",
    [Plain, Asynchronous, ReturnsAnAwaitable, AsksForALoop, RunsItsOwnLoop, LeavesATask],
)
def test_a_class_is_called_to_its_end(workflow: Any) -> None:
    check_callable(workflow)
    called: list[str] = []
    instance = workflow()
    with ThreadPoolExecutor(1) as thread:  # as the thread of a replica: the same for all calls
        for _ in range(2):
            thread.submit(run_to_end, lambda: instance(called)).result()
    assert called == ["called", "called"]


def test_a_constructor_has_the_loop_of_its_thread() -> None:
    def load() -> asyncio.AbstractEventLoop:
        provide_event_loop()
        return asyncio.get_event_loop()

    with ThreadPoolExecutor(1) as thread:
        loop = thread.submit(load).result()
        assert thread.submit(load).result() is loop
        # Connections of data sources survive the calls, even if a class runs a loop of its own.
        for workflow in (Asynchronous(), RunsItsOwnLoop(), AsksForALoop()):
            thread.submit(run_to_end, partial(workflow, [])).result()
            assert thread.submit(load).result() is loop
        loop.close()
        assert thread.submit(load).result() is not loop


def test_tasks_of_one_call_do_not_live_on_in_the_next() -> None:
    instance = LeavesATask()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run_to_end, lambda: instance([])).result()
    assert instance.left.cancelled()


def test_an_error_of_an_asynchronous_class_is_raised() -> None:
    async def fail() -> None:
        raise OSError("no data")

    with ThreadPoolExecutor(1) as thread, pytest.raises(OSError, match="no data"):
        thread.submit(run_to_end, fail).result()


class Yields:
    def __call__(self, io: Any) -> Iterator[int]:
        yield 1


class YieldsAsynchronously:
    async def __call__(self, io: Any) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize("workflow", [Yields, YieldsAsynchronously])
def test_a_generator_is_refused_when_it_is_loaded(workflow: type, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="__call__ is a generator, because it contains a yield"):
        UserClass(f"{__name__}:{workflow.__name__}", tmp_path)


@pytest.mark.parametrize("workflow", [Yields, YieldsAsynchronously])
def test_a_generator_behind_another_function_is_refused(workflow: Any) -> None:
    with ThreadPoolExecutor(1) as thread, pytest.raises(TypeError, match="returned a generator"):
        thread.submit(run_to_end, lambda: workflow()(None)).result()


MODULE = """
import signal
import signal as signals
from signal import signal as handle
from scipy_stand_in import signal as filters

{outside}

def helper():
    {helper}

class Workflow:
    def __call__(self, io):
        {call}
"""


@pytest.mark.parametrize(
    "call",
    [
        "signal.signal(signal.SIGALRM, print)",
        "signals.signal(signals.SIGTERM, signals.SIG_DFL)",
        "handle(2, print)",
        "signal.set_wakeup_fd(-1)",
        "exec('')\n        try: signal.signal(14, print)\n        except TimeoutError: pass",
        "import signal as late; late.signal(14, print)",
    ],
)
@pytest.mark.parametrize("where", ["call", "helper"])
def test_a_class_that_sets_signal_handlers_is_refused_when_it_is_loaded(
    call: str, where: str, load: Any
) -> None:
    call = call if where == "call" else call.replace("\n    ", "\n")
    with pytest.raises(TypeError, match=r"sets a signal handler in line \d+: Python allows that"):
        load(**{where: call})


@pytest.mark.parametrize(
    "call",
    [
        "signal.alarm(0)",
        "signal.getsignal(2)",
        "filters.signal(2)",
        "try: signal.signal(14, print)\n        except ValueError: pass",
        "try: signal.signal(14, print)\n        except (KeyError, Exception): pass",
        "if threading.current_thread() is threading.main_thread(): signal.signal(14, print)",
    ],
)
def test_a_class_that_may_run_in_a_thread_is_accepted(call: str, load: Any) -> None:
    load(call=call, outside="if __name__ == '__main__':\n    signal.signal(2, print)")


def test_python_refuses_signal_handlers_in_threads() -> None:
    """This is why they are refused when a class is loaded."""
    assert threading.current_thread() is threading.main_thread()
    assert handle is signal.signal
    with ThreadPoolExecutor(1) as thread, pytest.raises(ValueError, match="main thread"):
        thread.submit(signal.signal, signal.SIGUSR1, print).result()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Any:
    """A function that loads a class from a module with the given code."""

    def load(outside: str = "", helper: str = "pass", call: str = "pass") -> UserClass:
        name = f"user_module_{abs(hash((request.node.name, call, helper)))}"
        source = MODULE.format(outside=outside, helper=helper, call=call)
        (tmp_path / f"{name}.py").write_text(source)
        return UserClass(f"{name}:Workflow", tmp_path / "scratch")

    (tmp_path / "scipy_stand_in.py").write_text("class signal: signal = print")
    monkeypatch.syspath_prepend(tmp_path)
    return load
