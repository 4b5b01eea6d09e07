"""The README names every setting with its default."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from serve_app.settings.settings import Settings

README = Path(__file__).parents[1] / "README.md"


def settings(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_the_table_of_settings_is_true() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", README.read_text(), re.MULTILINE)
    given = {}
    for name, value in settings(Settings()):
        plain = json.loads(json.dumps(value, default=str))
        given[name] = plain if isinstance(plain, str) else json.dumps(plain)
    assert dict(rows) == given
