"""Types of option fields, shared by deployments and settings.

They are strict: YAML has its own numbers and truth values, and ``true`` is not a count. Every
number has bounds at both ends, since one that no clock, disk or calendar can hold would only fail
when it is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, Strict


def _import_path(value: str) -> str:
    if not is_import_path(value):
        raise ValueError('must be "module:Class", as in "my_package.workflows:MyWorkflow"')
    return value


def is_import_path(value: str) -> bool:
    """Return whether a text has the form ``module:name``."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", value) is not None


def check_path(path: Path) -> Path:
    """Return a path that a file system can have; raise ValueError for any other."""
    try:
        parts = path.expanduser().parts
    except RuntimeError as error:  # of an unknown user
        raise ValueError(str(error)) from None
    sizes = [len(part.encode(errors="surrogatepass")) for part in parts]
    if "\0" in str(path) or max(sizes, default=0) > 255 or sum(sizes) + len(sizes) > 2048:
        raise ValueError(
            "a path has no NUL, up to 255 bytes between two slashes, and up to 2048 in all"
        )
    return path


def _gpus(value: float) -> float:
    if value > 1 and not value.is_integer():
        raise ValueError("must be up to 1, or a whole number: Ray divides single GPUs only")
    if 0 < value < 0.0001:
        raise ValueError("must be 0 or at least 0.0001, the smallest part that Ray knows")
    return value


Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
Replicas = Annotated[int, Strict(), Field(ge=1, le=1000)]
Gpus = Annotated[float, Strict(), Field(ge=0, le=64, allow_inf_nan=False), AfterValidator(_gpus)]
"""GPUs of one replica, which is on one node."""
Seconds = Annotated[float, Strict(), Field(gt=0, le=30 * 86_400, allow_inf_nan=False)]
"""A time limit; up to 30 days."""
Hours = Annotated[float, Strict(), Field(ge=0, le=100 * 8766, allow_inf_nan=False)]
"""How long something is kept; up to a century, which calendars can add to any date."""
Days = Annotated[float, Strict(), Field(gt=0, le=100 * 365.25, allow_inf_nan=False)]
"""How long something is kept; up to a century."""
Gigabytes = Annotated[float, Strict(), Field(gt=0, le=1e9, allow_inf_nan=False)]
"""In 10^9 bytes; up to an exabyte, which databases can hold as an integer."""
FilePath = Annotated[Path, AfterValidator(check_path)]
ImportPath = Annotated[str, AfterValidator(_import_path)]
"""``module:name``."""
