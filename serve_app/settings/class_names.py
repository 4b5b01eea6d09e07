"""Name of a user's workflow class, read from its source, because importing it can take a minute.

Routes, deployments and the list of exposed workflows need the name before any replica runs.
"""

from __future__ import annotations

import ast
import functools

from serve_app.settings.modules import parse_source


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
    tree = parse_source(module)
    if tree is None or "." in attribute:
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
