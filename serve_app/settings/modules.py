"""Finds modules that settings name, without importing them: that can take a minute."""

from __future__ import annotations

import ast
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

OWN = ("deployments", "serve_app", "workflows")
"""Packages of earth2serve, which are the same wherever it runs."""


def find_module(module: str) -> ModuleSpec | None:
    """Return where a module is, or None if there is none of that name."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # nothing to import it from, such as __main__
        return None
    for part in rest:
        if spec is None:
            return None
        # By its last name alone: `find_spec` of a dotted name would import its parents.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or []))
    return spec


def parse_source(module: str) -> ast.Module | None:
    """Return a module's parsed source; None if it is not found or cannot be parsed."""
    spec = find_module(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def check_own(path: str) -> str:
    """Return a ``module:name``; raise ValueError if it names what earth2serve does not have."""
    module, _, name = path.partition(":")
    if module.partition(".")[0] not in OWN:
        return path
    tree = parse_source(module)
    if tree is None:
        raise ValueError(f"earth2serve has no module {module}")
    known = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if name.partition(".")[0] not in known:
        raise ValueError(f"{module} has no {name}; it has {', '.join(known)}")
    return path
