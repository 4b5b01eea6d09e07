"""Check configuration files: ``python -m serve_app.check FILE...``.

Serve ignores unknown keys, so a misspelt setting would silently have no effect. This checks the
whole file against Serve's own schema and the settings of earth2serve, and reports each problem as
``FILE:LINE: path: message``.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.settings import findings
from serve_app.settings.findings import Finding, known_places
from serve_app.settings.parsing import find_in_args
from serve_app.settings.preflight import find_missing
from serve_app.settings.settings import Settings
from serve_app.settings.workflows import CUSTOM_DEPLOYMENT

BUILD = "serve_app.app:build"
DEPLOYMENTS = (
    *("Ingress", "Conductor", "InitialConditions", "FCN3", "StormScope", "Packager"),
    *("BlobUploader", "GeoCatalog"),
)
"""Names that ``deployments:`` may contain, besides one for each custom workflow."""


FREE_KEYS = ("args", "user_config", "runtime_env")
"""Keys of Serve whose values are of an application, not of Serve."""
INT32_MAX = 2**31 - 1
"""Serve's controller stores its settings as integers of 32 bits."""
BYTES, PETABYTE = {"ray_actor_options", "placement_group_bundles"}, 10**15
"""Keys under which memory is requested, in bytes, and a limit for that."""


class UnreadableFile(Exception):
    """A file is not one YAML mapping; carries the line of the problem, if it is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message, line)
        self.message = message
        self.line = line


def check_file(path: str) -> list[str]:
    """Return the problems of a file, each as ``FILE:LINE: path: message``, in order of lines."""
    return _check(path)[0]


def _check(path: str) -> tuple[list[str], list[str]]:
    """Return the problems of a file, and warnings if there are none."""
    try:
        node = _parse(path)
        repeated = list(_repeated_keys(node, (), set()))
        values = _construct(node)
    except UnreadableFile as error:
        where = path if error.line is None else f"{path}:{error.line}"
        return [f"{where}: {error.message}"], []
    located = [*repeated, *((_line(node, found.path), found) for found in find_in_file(values))]
    # Serve's schema reports some problems twice, once for each branch of a union.
    lines = dict.fromkeys((line, str(finding)) for line, finding in located)
    problems = [f"{path}:{line}: {text}" for line, text in sorted(lines, key=lambda each: each[0])]
    missing = [] if problems else _missing_modules(values)
    return problems, [f"{path}:{_line(node, each.path)}: warning: {each}" for each in missing]


def _missing_modules(values: Mapping[str, Any]) -> list[Finding]:
    return [
        Finding(("applications", index, "args", *found.path), found.message)
        for index, application in enumerate(values["applications"])
        if application["import_path"] == BUILD
        for found in find_missing(Settings.model_validate(dict(application.get("args", {}))))
    ]


def find_in_file(values: Mapping[str, Any]) -> list[Finding]:
    """Return the problems of the contents of a configuration file."""
    if unusable := findings.find_unusable(values, ()):
        return unusable
    problems = list(_not_json(values, (), (), set()))
    problems += findings.find(values, ServeDeploySchema, (), known_places(Settings))
    problems += _find_large_numbers(values)
    applications = values.get("applications")
    if applications == []:
        problems.append(Finding(("applications",), "must contain an application"))
    for index, application in enumerate(applications if isinstance(applications, list) else ()):
        if isinstance(application, Mapping):
            problems += _find_in_application(application, ("applications", index))
    return problems


def _find_large_numbers(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield numbers in Serve's own keys that it would accept and then fail with."""
    for path, value in findings.scalars(values, (), skip=FREE_KEYS):
        if isinstance(value, int | float):
            high = PETABYTE if BYTES.intersection(path) else INT32_MAX
            low, high = (0, 65_535) if path[-1] == "port" else (-high, high)
            if not low <= value <= high:
                yield Finding(path, f"must be between {low} and {high}")


def _not_json(
    value: object, path: findings.Path, enclosing: tuple[int, ...], seen: set[int]
) -> Iterator[Finding]:
    """Yield the values that YAML knows and JSON does not: Serve could not deploy them."""
    if id(value) in enclosing:
        yield Finding(path, "refers to a mapping or list that contains it")
    elif isinstance(value, dict | list | tuple):
        if id(value) in seen:  # an alias
            return
        seen.add(id(value))
        try:
            if isinstance(value, dict):
                json.dumps(dict.fromkeys(value), sort_keys=True)
        except TypeError:
            yield Finding(path, "keys must be text; put the others in quotes")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            part = key if isinstance(key, int) else str(key)
            yield from _not_json(item, (*path, part), (*enclosing, id(value)), seen)
    elif value is not None and not isinstance(value, str | int | float):
        kind = type(value).__name__
        text = f"a {kind}, which Serve cannot deploy; put it in quotes to make it text"
        yield Finding(path, text)


def _find_in_application(application: Mapping[str, Any], path: findings.Path) -> Iterator[Finding]:
    target = application.get("import_path")
    if target != BUILD:
        # Arguments and deployments of other applications are unknown. A misspelt path of this one
        # must not pass as another application.
        if isinstance(target, str) and (
            target.startswith("serve_app") or difflib.get_close_matches(target, [BUILD], cutoff=0.8)
        ):
            yield Finding((*path, "import_path"), f"unknown import path; did you mean {BUILD}?")
        return
    if application.get("route_prefix", "/") is None:
        reason = "must be a path, such as /: without one, nobody could call the HTTP API"
        yield Finding((*path, "route_prefix"), reason)
    args = application.get("args", {})
    known: tuple[str, ...] = DEPLOYMENTS
    args_are_valid = False
    if isinstance(args, Mapping):
        problems = find_in_args(args, (*path, "args"))
        yield from problems
        args_are_valid = not problems
        if args_are_valid:
            workflows = Settings.model_validate(dict(args)).workflows
            known += tuple(workflow.deployment for workflow in workflows.custom)
    deployments = application.get("deployments")
    names = set()
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else ()):
        name = deployment.get("name") if isinstance(deployment, Mapping) else None
        if not isinstance(name, str):
            continue
        place = (*path, "deployments", index, "name")
        if name.startswith(CUSTOM_DEPLOYMENT) and not args_are_valid:
            continue  # the names of custom workflows are unknown
        if name not in known:
            yield Finding(place, f"unknown deployment {name!r}; known are {', '.join(known)}")
        elif name in names:
            yield Finding(place, f"{name} is overridden twice")
        names.add(name)


def _parse(path: str) -> yaml.MappingNode:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UnreadableFile((error.strerror or str(error)).lower()) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UnreadableFile("invalid UTF-8", line) from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except RecursionError:
        raise UnreadableFile("invalid YAML: nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UnreadableFile(f"invalid YAML: {error.reason}", line) from None
    if not isinstance(node, yaml.MappingNode):
        raise UnreadableFile("must be a mapping with the key applications", 1)
    return node


def _construct(node: yaml.MappingNode) -> dict[str, Any]:
    try:
        values: dict[str, Any] = yaml.constructor.SafeConstructor().construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except ValueError as error:  # such as a date with month 13
        raise UnreadableFile(f"invalid YAML: {error}") from None
    return values


def _syntax_error(error: yaml.MarkedYAMLError) -> UnreadableFile:
    mark = error.problem_mark or error.context_mark
    message = " ".join(filter(None, (error.context, error.problem)))
    return UnreadableFile(f"invalid YAML: {message}", mark.line + 1 if mark else None)


def _repeated_keys(
    node: yaml.Node, path: findings.Path, visited: set[int]
) -> Iterator[tuple[int, Finding]]:
    """Yield repeated keys of mappings, of which YAML would silently keep the last."""
    if id(node) in visited:  # an alias, possibly to an enclosing node
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, index), visited)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in first:
                yield line, Finding((*path, name), f"repeated, first set on line {first[name]}")
            first.setdefault(name, line)
            yield from _repeated_keys(value, (*path, name), visited)


def _line(node: yaml.Node, path: findings.Path) -> int:
    """Return the line of a path, or of the innermost existing part of it."""
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            # From the end: the last of repeated keys counts, and merged keys come first.
            entry = next((e for e in reversed(node.value) if e[0].value == str(part)), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the files named on the command line; return 0 if they are valid."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.check",
        description="Report unknown or misplaced keys, and invalid values, in configuration files.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    valid = True
    for path in parser.parse_args(arguments).files:
        problems, warnings = _check(path)
        valid = valid and not problems
        for line in (*problems, *warnings):
            print(line)
        if not problems:
            print(f"{path}: ok")
    return int(not valid)


if __name__ == "__main__":
    sys.exit(main())
