"""Name of a user's workflow class, read from its source, because importing it can take a minute.

Routes, deployments and the list of exposed workflows need the name before any replica runs.
"""

from __future__ import annotations

import ast
import functools
import sys
from importlib.machinery import PathFinder
from pathlib import Path


@functools.cache
def declared_name(path: str) -> str | None:
    """Return the ``name`` that a class declares in its body, or else the name of the class.

    Parameters
    ----------
    path : str
        ``module:Class``.

    Returns
    -------
    str or None
        None if the source cannot be found, or the name is not a literal there.
    """
    module, _, attribute = path.partition(":")
    source = _source(module)
    if source is None or "." in attribute:
        return None
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return _name_in(node)
    return None


def _name_in(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        if any(isinstance(target, ast.Name) and target.id == "name" for target in targets):
            value = getattr(statement, "value", None)
            literal = value.value if isinstance(value, ast.Constant) else None
            return literal if isinstance(literal, str) else None
    # Earth2Studio's base class falls back to the name of the class.
    return node.name


def _source(module: str) -> Path | None:
    """Return a module's file, without importing the module or its parents."""
    search_path, origin = sys.path, None
    for part in module.split("."):
        # By its last name alone: a dotted name of a namespace package would import its parents.
        spec = PathFinder.find_spec(part, search_path)
        if spec is None:
            return None
        search_path, origin = list(spec.submodule_search_locations or []), spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None
