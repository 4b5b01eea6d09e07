"""Names of the folders of results."""

from __future__ import annotations

import re

PARTIAL = ".partial"
"""Folder next to the results, on the same mount, with incomplete files."""


def result_folder(workflow: str, execution_id: str) -> str:
    """Return the folder of a result, relative to the folder or container of all results."""
    return f"{workflow}/{execution_id}"


def check_name(name: str) -> str:
    """Return a name; raise ValueError if it cannot be one component of a path."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"not a name: {name[:80]!r}")
    return name
