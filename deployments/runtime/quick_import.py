"""Speeds up the import of Earth2Studio."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

IMPORTS = "earth2studio.utils.imports"
"""Earth2Studio's module that records missing optional dependencies by file."""


def speed_up_earth2studio_import() -> None:
    """Replace `inspect.stack` with a cheap version for Earth2Studio, in this process.

    For each optional dependency and each class that needs one, Earth2Studio 0.19 calls
    `inspect.stack` and uses only the file name of the second entry. `inspect` searches all loaded
    modules for the source of every frame, which takes 64 of the 73 CPU seconds of
    ``import earth2studio.models.px``. All other callers get what `inspect` returns.
    """
    inspect.stack = _stack


def _stack(context: int = 1) -> list[Any]:
    caller = sys._getframe(1)
    if caller.f_globals.get("__name__") != IMPORTS:
        return inspect.getouterframes(caller, context)
    frames = (caller, caller.f_back)
    return [SimpleNamespace(filename=frame.f_code.co_filename) for frame in frames if frame]
