"""Problems of a configuration, each with its place and a message that says how to fix it.

The application uses this at startup and `serve_app.check` for a whole file, so both report the
same.
"""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the file, such as ``("applications", 0, "args")``."""

Places = Sequence[tuple[str, str]]
"""Every known key, with the pattern of the mapping that it belongs in: ``applications[].args``."""

# Serve's application schema still has these two keys, but its validator refuses them.
_SINGLE_APPLICATION_KEYS = {"host", "port"}
_RUNTIME_ENV_KEYS = {name.lstrip("_") for name in RuntimeEnv.known_fields}


@dataclass(frozen=True)
class Finding:
    """One problem."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def dotted(path: Path) -> str:
    """Return a path as text: ``applications[0].args.queue``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def find(
    values: Mapping[str, Any], model: type[BaseModel], path: Path, places: Places
) -> list[Finding]:
    """Return the unknown keys and invalid values in the part of a file at `path`.

    Parameters
    ----------
    model : type
        Model of that part.
    places : sequence
        Other places where an unknown key could belong, see `known_places`.
    """
    unknown = list(_unknown_keys(values, model, path, places))
    invalid = _invalid_values(values, model, path)
    return [*unknown, *(each for each in invalid if not _is_within(each.path, unknown))]


def _is_within(path: Path, findings: Sequence[Finding]) -> bool:
    return any(path[: len(found.path)] == found.path for found in findings)


@functools.cache
def known_places(args: type[BaseModel]) -> Places:
    """Return every key that a file with this model of ``args`` may have, the least nested first."""
    return sorted(_places(ServeDeploySchema, "", args), key=lambda place: place[1].count("."))


def _places(annotation: Any, pattern: str, args: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for model, suffix in _models(annotation):
        mapping = pattern + suffix
        for name, field in _keys(model).items():
            if model is ServeApplicationSchema and name in _SINGLE_APPLICATION_KEYS:
                continue
            yield name, mapping
            inner = args if model is ServeApplicationSchema and name == "args" else field.annotation
            yield from _places(inner, f"{mapping}.{name}" if mapping else name, args)


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model, by their keys in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the pydantic models in an annotation, with the suffix ``[]`` for those in lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif get_origin(annotation) in (Union, types.UnionType):
        for choice in get_args(annotation):
            yield from _models(choice)
    elif get_origin(annotation) in (list, tuple):
        for item in get_args(annotation):
            for model, suffix in _models(item):
                yield model, "[]" + suffix
    elif get_origin(annotation) is dict:
        for model, suffix in _models((get_args(annotation) or (None,))[-1]):
            yield model, ".*" + suffix


def _model_of_extra(model: type[BaseModel]) -> Any:
    """Return the type of values under any other key than a model's fields; None if refused."""
    if model.model_config.get("extra") != "allow":
        return None
    extra = get_type_hints(model, include_extras=True).get("__pydantic_extra__")
    return get_args(extra)[1] if get_args(extra) else None


def scalars(
    values: Any, path: Path, skip: Collection[str] = (), seen: set[int] | None = None
) -> Iterator[tuple[Path, Any]]:
    """Yield the scalars in mappings and lists, except below some keys.

    What aliases of YAML repeat, possibly in itself, is visited once.
    """
    seen = set() if seen is None else seen
    if not isinstance(values, Mapping | list | tuple):
        yield path, values
    elif id(values) not in seen:
        seen.add(id(values))
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            if key not in skip:
                yield from scalars(value, (*path, key), skip, seen)


def find_unusable(values: Any, path: Path) -> list[Finding]:
    """Return the texts that no path, process or database can take."""
    found = []
    for place, value in scalars(values, path):
        if isinstance(value, str) and "\0" in value:
            found.append(Finding(place, "must not contain NUL"))
        elif isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value):
            found.append(Finding(place, "must be Unicode text, without surrogates"))
    return found


def _unknown_keys(values: Any, annotation: Any, path: Path, places: Places) -> Iterator[Finding]:
    for model, suffix in _models(annotation):
        if suffix.startswith(".*"):
            for key, item in values.items() if isinstance(values, Mapping) else ():
                yield from _unknown_keys(item, model, (*path, key), places)
        elif suffix:
            for index, item in enumerate(values if isinstance(values, list) else ()):
                yield from _unknown_keys(item, model, (*path, index), places)
        elif isinstance(values, Mapping):
            yield from _unknown_in(values, model, path, places)


def _unknown_in(
    values: Mapping[str, Any], model: type[BaseModel], path: Path, places: Places
) -> Iterator[Finding]:
    fields = _keys(model)
    for key, value in values.items():
        place = (*path, key)
        extra = _model_of_extra(model)
        if key not in fields and extra is not None and not _is_misspelt(key, value, fields):
            yield from _unknown_keys(value, extra, place, places)
        elif key not in fields:
            yield Finding(place, _advice(key, list(fields), path, places))
        elif key == "runtime_env" and isinstance(value, Mapping):
            for name in value.keys() - _RUNTIME_ENV_KEYS:
                names = sorted(_RUNTIME_ENV_KEYS)
                yield Finding((*place, name), _advice(name, names, place, places))
        else:
            yield from _unknown_keys(value, fields[key].annotation, place, places)
            # Serve accepts some sections as plain dicts, and validates them only when it deploys.
            if isinstance(value, dict) and _may_be_dict(fields[key].annotation):
                for inner, _ in _models(fields[key].annotation):
                    yield from _invalid_values(value, inner, place)


def _is_misspelt(key: object, value: Any, known: Collection[str]) -> bool:
    """Return whether a name of one's own is probably meant for a known one: it has no loader."""
    has_loader = isinstance(value, Mapping) and "loader" in value
    return not has_loader and bool(difflib.get_close_matches(str(key), known, n=1, cutoff=0.7))


def _may_be_dict(annotation: Any) -> bool:
    return any(get_origin(choice) is dict for choice in get_args(annotation))


def _advice(key: object, names: Sequence[str], path: Path, places: Places) -> str:
    mapping = "".join("[]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    others = [other for name, other in places if name == key and other != mapping]
    below = [other for other in others if not mapping or other.startswith(mapping + ".")]
    below += [other for other in others if other.startswith(mapping + "[]") and other not in below]
    close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.7)
    if below:
        return f"unknown key; it belongs in {' or '.join(below[:3])}"
    if close:
        return f"unknown key; did you mean {close[0]}?"
    if others:
        return f"unknown key; it belongs in {' or '.join(others[:3])}"
    return f"unknown key; known are {', '.join(names)}"


def _invalid_values(
    values: Mapping[str, Any], model: type[BaseModel], path: Path
) -> Iterator[Finding]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        yield from explain(error, values, path)
    except (ImportError, AttributeError) as error:
        # Serve imports an autoscaling policy while it validates.
        yield Finding(path, str(error))


def explain(error: ValidationError, values: Any, path: Path) -> Iterator[Finding]:
    """Yield the problems that pydantic reports, except unknown keys, which `find` explains better.

    Values are never quoted: a URL may contain a password.
    """
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        if problem["type"] == "extra_forbidden":
            continue
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        yield Finding((*path, *_location(problem["loc"], values, problem["type"])), message)


def _location(loc: Sequence[str | int], values: Any, kind: str) -> Iterator[str | int]:
    """Yield the parts of a location that exist in the file, not the branches of unions."""
    for position, part in enumerate(loc):
        if isinstance(values, Mapping) and part in values:
            values = values[part]
            yield part
        elif isinstance(values, Sequence) and isinstance(part, int) and part < len(values):
            values = values[part]
            yield part
        elif kind == "missing" and position == len(loc) - 1:
            yield part
