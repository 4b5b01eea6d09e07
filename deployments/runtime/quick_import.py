"""Import Earth2Studio in a fraction of the time."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

IMPORTS = "earth2studio.utils.imports"
"""Earth2Studio's module that notes which optional dependencies are missing, by file."""


def quicken_earth2studio() -> None:
    """Answer Earth2Studio's questions about the call stack quickly, in this process.

    For each optional dependency and each class that needs one, Earth2Studio 0.19 calls
    `inspect.stack` and uses nothing but the second entry's file name. `inspect` searches all loaded
    modules for the source of every frame, which takes 64 of the 73 CPU seconds of
    ``import earth2studio.models.px``. All other callers get what `inspect` returns.
    """
    if inspect.stack is not _stack:
        inspect.stack = _stack


def _stack(context: int = 1) -> list[Any]:
    caller = sys._getframe(1)
    if caller.f_globals.get("__name__") != IMPORTS:
        return inspect.getouterframes(caller, context)
    frames = (caller, caller.f_back)
    return [SimpleNamespace(filename=frame.f_code.co_filename) for frame in frames if frame]
