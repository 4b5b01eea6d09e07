"""What all sections of the settings are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

SYNTHETIC = "synthetic"


def _import_path(value: str) -> str:
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", value):
        raise ValueError('give "module:Class", as in "my_package.workflows:MyWorkflow"')
    return value


def _loader(value: str) -> str:
    if value != SYNTHETIC and not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", value):
        raise ValueError(f'give "{SYNTHETIC}" or "module:callable", as in "my_package.models:load"')
    return value


# Strict, because YAML has its own numbers and truth values: `true` is no count.
Count = Annotated[int, Strict(), Field(ge=1)]
Amount = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
ImportPath = Annotated[str, AfterValidator(_import_path)]
Loader = Annotated[str, AfterValidator(_loader)]


class Section(BaseModel):
    """Base of all sections: an unknown name is an error, and errors never quote a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
