"""What a user's workflow class is called, read in its source: importing it would take a minute.

It must be known before any replica runs: routes, deployments and the exposure list need it.
"""

from __future__ import annotations

import ast
import functools
import sys
from importlib.machinery import PathFinder
from pathlib import Path


@functools.cache
def declared_name(path: str) -> str | None:
    """Give the ``name`` that a class states in its body, or else its own, as it will at run time.

    Parameters
    ----------
    path : str
        ``module:Class``.

    Returns
    -------
    str or None
        None if the source cannot be found, or the name is not written out there.
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
            said = value.value if isinstance(value, ast.Constant) else None
            return said if isinstance(said, str) else None
    # Earth2Studio's base class takes the class's own name then.
    return node.name


def _source(module: str) -> Path | None:
    """Find a module's file without importing anything, its parents included."""
    where, origin = sys.path, None
    for part in module.split("."):
        # By its last name alone: with a dotted one, folders without __init__.py would want their
        # parents imported.
        spec = PathFinder.find_spec(part, where)
        if spec is None:
            return None
        where, origin = list(spec.submodule_search_locations or []), spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None
