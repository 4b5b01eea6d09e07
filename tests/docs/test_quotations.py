"""Messages that the pages quote are those of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.docs.pages import DOCS, ROOT

QUOTED = [
    ("README.md", "ready: "),
    ("docs/models.md", "is still being loaded"),
    ("docs/operations.md", "is still being loaded"),
    ("docs/operations.md", "conducting with fencing token"),
    ("docs/operations.md", "given up after"),
    ("docs/operations.md", "args.store_url: SQLite"),
    ("docs/operations.md", "this cluster has"),
    ("docs/observability.md", " is retried at "),
    ("docs/observability.md", "DBOS:"),
    ("docs/custom-workflows.md", "the workflow wrote no variables"),
    ("docs/http-api.md", "internal error"),
    ("docs/http-api.md", "queued for execution"),
    ("docs/http-api.md", "time steps written"),
]


def literals() -> Iterator[str]:
    """Yield the text of every string in the code, and of the parts of f-strings."""
    for package in ("serve_app", "deployments", "workflows"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.fixture(scope="module")
def code() -> str:
    return "\n".join(literals())


@pytest.mark.parametrize(("page", "message"), QUOTED)
def test_a_quoted_message_is_in_the_code(page: str, message: str, code: str) -> None:
    assert message in " ".join((DOCS.parent / page).read_text().split("\n"))
    assert message in code
