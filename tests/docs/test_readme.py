"""The README's map of the code says what each folder says of itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.docs.pages import ROOT


def test_the_map_of_the_code_is_that_of_the_folders() -> None:
    listed = re.findall(
        r"^\| `([\w/]+)/` \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert dict(listed) == {
        str(folder.relative_to(ROOT)): purpose(folder)
        for package in ("serve_app", "deployments", "workflows")
        for folder in (ROOT / package, *(ROOT / package).iterdir())
        if (folder / "__init__.py").exists() and folder.name != "deployments"
    }


def purpose(folder: Path) -> str:
    """Return the first paragraph of a package's docstring on one line."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())
