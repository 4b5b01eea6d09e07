"""Types of option fields, shared by deployments and settings.

They are strict: YAML has its own numbers and truth values, and ``true`` is not a count.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, Strict


def _import_path(value: str) -> str:
    if not is_import_path(value):
        raise ValueError('must be "module:Class", as in "my_package.workflows:MyWorkflow"')
    return value


def is_import_path(value: str) -> bool:
    """Return whether a text has the form ``module:name``."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", value) is not None


Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
ImportPath = Annotated[str, AfterValidator(_import_path)]
"""``module:name``."""
