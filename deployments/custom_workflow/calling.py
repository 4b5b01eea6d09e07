"""How a user's class is called: in a thread, with an event loop of its own.

Earth2Studio's server calls classes in the main thread of a process. Ray keeps the main thread of a
replica to itself, so what only works there is refused when the class is loaded.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

MAIN_THREAD_ONLY = frozenset({"signal", "siginterrupt", "set_wakeup_fd"})
"""Functions of the module `signal` that raise ValueError in other threads."""


_thread = threading.local()


def check_callable(workflow: type) -> None:
    """Raise TypeError if a class cannot be called as `run_to_end` calls it."""
    function = inspect.unwrap(workflow.__call__)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            "__call__ is a generator, because it contains a yield: nothing would run it. "
            "Write results to io instead"
        )
    for module in dict.fromkeys(base.__module__ for base in workflow.__mro__):
        for line in _signal_handlers(module):
            raise TypeError(
                f"{module} sets a signal handler in line {line}: Python allows that only in the "
                "main thread, but a workflow runs in another thread of its replica"
            )


def provide_event_loop() -> asyncio.AbstractEventLoop:
    """Return this thread's current event loop, which constructors and calls may ask for.

    It stays the same for all calls: data sources keep connections that belong to it.
    """
    try:
        loop = asyncio.get_event_loop()
    except RuntimeError:  # also after the class has called asyncio.run
        loop = getattr(_thread, "loop", None) or asyncio.new_event_loop()
    if loop.is_closed():
        loop = asyncio.new_event_loop()
    _thread.loop = loop
    asyncio.set_event_loop(loop)
    return loop


def run_to_end(call: Callable[[], Any]) -> None:
    """Call a class; await what it returns if it is asynchronous.

    Raises
    ------
    TypeError
        If the call returns a generator, which nothing would run.
    """
    loop = provide_event_loop()
    result = call()
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("the call returned a generator, which nothing would run")
    if not inspect.isawaitable(result):
        return
    try:
        loop.run_until_complete(_result(result))
    finally:
        # As asyncio.run does: otherwise they would continue in the next call.
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


async def _result(awaitable: Awaitable[Any]) -> None:
    await awaitable


def _signal_handlers(module: str) -> Iterator[int]:
    """Yield the lines of functions of a module that call what works in the main thread only."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError):  # built in, or without a source
        return
    modules, functions = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {n.asname or n.name for n in node.names if n.name == "signal"}
        elif isinstance(node, ast.ImportFrom) and node.module == "signal" and not node.level:
            functions |= {n.asname or n.name for n in node.names if n.name in MAIN_THREAD_ONLY}
    if not modules and not functions:
        return
    for call in _unguarded_calls(tree):
        match call.func:
            case ast.Name(id=name) if name in functions:
                yield call.lineno
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if (
                name in modules and attribute in MAIN_THREAD_ONLY
            ):
                yield call.lineno


def _unguarded_calls(node: ast.AST, in_function: bool = False) -> Iterator[ast.Call]:
    """Yield calls in functions, except where the code is prepared for another thread.

    Calls outside of functions have run when the module was imported.
    """
    if isinstance(node, ast.Try) and any(map(_catches_value_error, node.handlers)):
        for each in (*node.handlers, *node.orelse, *node.finalbody):
            yield from _unguarded_calls(each, in_function)
        return
    if isinstance(node, ast.If) and "main_thread" in ast.dump(node.test):
        return
    if isinstance(node, ast.Call) and in_function:
        yield node
    in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.iter_child_nodes(node):
        yield from _unguarded_calls(child, in_function)


def _catches_value_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"ValueError", "Exception", "BaseException"})
