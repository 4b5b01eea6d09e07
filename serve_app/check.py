"""Check configuration files: ``python -m serve_app.check FILE...``.

Serve ignores keys that it does not know, so a misspelt setting would silently have no effect.
This reads the whole file against Serve's own schema and our settings, and names the line of
everything that is wrong, as ``FILE:LINE: path: message``.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import findings
from serve_app.settings.findings import Finding
from serve_app.settings.sections import CUSTOM
from serve_app.settings.settings import DEPLOYMENTS, Settings, find_in_args, places

BUILD = "serve_app.app:build"


class UnreadableFile(Exception):
    """A file that cannot be read as one YAML mapping.

    Parameters
    ----------
    message : str
        Why.
    line : int, optional
        Where, if that is known.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message, line)
        self.message = message
        self.line = line


def check_file(path: str) -> list[str]:
    """Check one file.

    Parameters
    ----------
    path : str
        A configuration for ``serve run`` or ``serve deploy``.

    Returns
    -------
    list of str
        ``FILE:LINE: path: message`` for everything that is wrong, in the order of the file.
    """
    try:
        node = _parse(path)
        repeated = list(_repeated_keys(node, (), set()))
        values = _construct(node)
    except UnreadableFile as error:
        where = path if error.line is None else f"{path}:{error.line}"
        return [f"{where}: {error.message}"]
    found = [(line, finding) for line, finding in repeated]
    found += [(_line(node, finding.path), finding) for finding in find_in_file(values)]
    # Serve's schema meets some things twice, once for each branch of a union.
    lines = dict.fromkeys((line, str(finding)) for line, finding in found)
    return [f"{path}:{line}: {text}" for line, text in sorted(lines, key=lambda entry: entry[0])]


def find_in_file(values: Mapping[str, Any]) -> list[Finding]:
    """Find what is wrong with the contents of a configuration file."""
    found = findings.find(values, ServeDeploySchema, (), places())
    applications = values.get("applications")
    if applications == []:
        found.append(Finding(("applications",), "an application is needed"))
    for index, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, Mapping):
            found += _find_in_application(application, ("applications", index))
    return found


def _find_in_application(application: Mapping[str, Any], path: findings.Path) -> Iterator[Finding]:
    target = application.get("import_path")
    if target != BUILD:
        # Another's application has arguments and deployments that only it knows; but a misspelt
        # path of ours must not pass as another's.
        if isinstance(target, str) and (
            target.startswith("serve_app") or difflib.get_close_matches(target, [BUILD], cutoff=0.8)
        ):
            yield Finding((*path, "import_path"), f"unknown import path; did you mean {BUILD}?")
        return
    args = application.get("args", {})
    known: tuple[str, ...] = DEPLOYMENTS
    usable = False
    if isinstance(args, Mapping):
        wrong = find_in_args(args, (*path, "args"))
        yield from wrong
        usable = not wrong
        if usable:
            workflows = Settings.model_validate(dict(args)).workflows
            known += tuple(each.deployment for each in workflows.custom)
    deployments = application.get("deployments")
    seen = set()
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else ()):
        name = deployment.get("name") if isinstance(deployment, Mapping) else None
        if not isinstance(name, str):
            continue
        here = (*path, "deployments", index, "name")
        if name.startswith(CUSTOM) and not usable:
            continue  # what it could name is not known
        if name not in known:
            yield Finding(here, f"unknown deployment {name!r}; known are {', '.join(known)}")
        elif name in seen:
            yield Finding(here, f"{name} is overridden twice")
        seen.add(name)


def _parse(path: str) -> yaml.MappingNode:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UnreadableFile((error.strerror or str(error)).lower()) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UnreadableFile("not UTF-8 text", line) from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except RecursionError:
        raise UnreadableFile("not YAML: nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UnreadableFile(f"not YAML: {error.reason}", line) from None
    if not isinstance(node, yaml.MappingNode):
        raise UnreadableFile("a mapping with the key applications is needed", 1)
    return node


def _construct(node: yaml.MappingNode) -> dict[str, Any]:
    constructor = yaml.constructor.SafeConstructor()
    try:
        values: dict[str, Any] = constructor.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except ValueError as error:  # such as a date with month 13
        raise UnreadableFile(f"not YAML: {error}") from None
    return values


def _syntax_error(error: yaml.MarkedYAMLError) -> UnreadableFile:
    mark = error.problem_mark or error.context_mark
    words = " ".join(filter(None, (error.context, error.problem)))
    return UnreadableFile(f"not YAML: {words}", mark.line + 1 if mark else None)


def _repeated_keys(
    node: yaml.Node, path: findings.Path, seen: set[int]
) -> Iterator[tuple[int, Finding]]:
    """Find keys that a mapping has twice: YAML keeps the last and forgets the others."""
    if id(node) in seen:  # an alias, maybe to something around it
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in first:
                yield line, Finding((*path, name), f"repeated, first given on line {first[name]}")
            first.setdefault(name, line)
            yield from _repeated_keys(value, (*path, name), seen)


def _line(node: yaml.Node, path: findings.Path) -> int:
    """Give the line of what a path names, or of the nearest thing around it."""
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            # From the end: of repeated keys the last counts, and merged ones come first.
            entry = next((e for e in reversed(node.value) if e[0].value == str(part)), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the files named on the command line; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.check",
        description="Refuse unknown and misplaced keys, and wrong values, in configuration files.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    wrong = False
    for path in parser.parse_args(arguments).files:
        problems = check_file(path)
        wrong = wrong or bool(problems)
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{path}: ok")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
