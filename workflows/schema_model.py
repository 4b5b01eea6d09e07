"""Parameters made from a JSON schema, for workflows whose class must not be imported here.

A user's class is imported on a GPU replica only. It hands over the schema of its own parameter
model, and its process checks every request again. So a schema may make the model made here laxer,
where something has no translation, but it can never make it fail.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import re
import types
import warnings
from collections.abc import Hashable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_serializer,
)
from pydantic_core import SchemaError

from workflows.base import Parameters, number_not_bool
from workflows.times import naive_utc, time_text

TIME_FIELDS = ("start_time", "forecast_times")
"""The peer demands a date and a time of these, even where they are text."""


def parameters_from_schema(schema: Mapping[str, Any], name: str = "Parameters") -> type[Parameters]:
    """Make a parameter model that takes what the model behind a schema takes.

    It differs on purpose where that model would guess: true and false are no numbers, times are
    ISO 8601 text and become naive UTC, and strings hold no NUL. What a request leaves out, and the
    schema has no default for, is None here and left out of the dump: the class has its default.

    The class is best given ``model_dump(mode="json", exclude_unset=True)``: pydantic does not check
    defaults, so a class may refuse its own if it is sent, such as None for a ``str``.

    Parameters
    ----------
    schema : mapping
        As pydantic's ``model_json_schema()`` gives it.
    name : str, optional
        Name of the model.

    Raises
    ------
    Exception
        If a field has a name that pydantic takes for no field, such as ``_x`` or ``model_dump``.
        The class's own model could not have one either.
    """
    translation = _Translation(schema.get("$defs", {}))
    if "$ref" in schema:  # how pydantic writes a model that contains itself
        schema = translation.target(schema["$ref"])
    properties = {
        field: _with_time_text(entry) if field in TIME_FIELDS else entry
        for field, entry in schema.get("properties", {}).items()
    }
    return translation.model({**schema, "properties": properties}, name, _Object)


def _no_nul(text: str) -> str:
    if "\0" in text:  # which PostgreSQL cannot store
        raise ValueError("NUL characters are not allowed")
    return text


def _storable(value: Any) -> Any:
    """Check what no schema describes: strings without NUL and finite numbers, at any depth."""
    pending = [value]
    while pending:
        match pending.pop():
            case str() as text:
                _no_nul(text)
            case float() as number if not math.isfinite(number):
                raise ValueError("a finite number is needed")
            case list() as entries:
                pending.extend(entries)
            case dict() as entries:
                pending.extend((*entries, *entries.values()))
    return value


def _bool_apart(value: Any) -> Any:
    # True equals 1: as something else it is refused by Literal, which names what is allowed.
    return object() if isinstance(value, bool) else value


def _distinct(entries: list[Any]) -> list[Any]:
    """Drop repetitions as a set does, but keep the order; the class refuses the unhashable."""
    hashable = all(isinstance(entry, Hashable) for entry in entries)
    return list(dict.fromkeys(entries)) if hashable else entries


_AsAny: Any = SerializeAsAny
_Text = Annotated[str, AfterValidator(_no_nul)]
_Anything = Annotated[Any, AfterValidator(_storable)]
_TIME_TEXT = "time-text"
"""A format of our own: text that names a time and stays text."""
_FORMATS = {
    "date-time": Annotated[datetime, BeforeValidator(naive_utc)],
    "date": date,
    "time": time,
    "duration": timedelta,
    "uuid": UUID,
    _TIME_TEXT: Annotated[_Text, AfterValidator(time_text)],
}
_BOUNDS = {
    "integer": {
        "minimum": "ge",
        "maximum": "le",
        "exclusiveMinimum": "gt",
        "exclusiveMaximum": "lt",
        "multipleOf": "multiple_of",
    },
    "string": {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"},
    "array": {"minItems": "min_length", "maxItems": "max_length"},
    "object": {"minProperties": "min_length", "maxProperties": "max_length"},
}
_BOUNDS["number"] = _BOUNDS["integer"]


class _Object(Parameters):
    @model_serializer(mode="wrap")
    def _without_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        left_out = {name for name in fields if fields[name].default_factory} - self.model_fields_set
        return {name: value for name, value in handler(self).items() if name not in left_out}


class _Translation:
    """Gives the Python types that schemas stand for; `definitions` are what they refer to."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._made: dict[str, Any] = {}
        self._making: set[str] = set()

    def target(self, reference: str) -> Any:
        return self._definitions[reference.removeprefix("#/$defs/")]

    def model(self, schema: Mapping[str, Any], name: str, base: type[_Object]) -> type[Parameters]:
        fields: dict[str, Any] = {}
        for field, entry in schema["properties"].items():
            annotation = self.annotation(entry)
            facts = entry if isinstance(entry, Mapping) else {}
            about = {fact: facts[fact] for fact in ("title", "description") if fact in facts}
            if field not in schema.get("required", ()):
                about |= _default(facts, annotation)
            # As any, for a default that the class does not check either may be of any type.
            fields[field] = (_AsAny[annotation], Field(**about))
        with warnings.catch_warnings():  # of fields that hide deprecated methods, such as "copy"
            warnings.simplefilter("ignore", UserWarning)
            return create_model(name, __base__=base, __doc__=schema.get("description"), **fields)

    def annotation(self, schema: Any) -> Any:
        try:
            made = self._translate(schema)
            TypeAdapter(made)  # raises where bounds do not suit their type
        except Exception:  # whatever is odd about it: the class's process checks again
            return _Anything
        return made

    def _translate(self, schema: Any) -> Any:
        match schema:
            case {"$ref": reference}:
                return self._referred(reference)
            case {"allOf": [only], **rest}:
                return self._translate({**rest, **only})
            case {"const": value}:
                return _literal([value])
            case {"enum": [*values]}:
                return _literal(values)
            case {"oneOf": [*choices], "discriminator": {"propertyName": tag}}:
                either = _any_of(self.annotation(choice) for choice in choices)
                return Annotated[either, Field(discriminator=tag)]
            case {"anyOf": [*choices]} | {"oneOf": [*choices]}:
                return _any_of(self._choice(choice) for choice in choices)
            case {"type": "null"}:
                return None
            case {"type": "boolean"}:
                return bool
            case {"type": "integer"}:
                return Annotated[int, _bounds(schema), BeforeValidator(number_not_bool)]
            case {"type": "number"}:
                return Annotated[float, _bounds(schema), BeforeValidator(number_not_bool)]
            case {"type": "string", "format": str(form)} if form in _FORMATS:
                return _FORMATS[form]
            case {"type": "string"}:
                return Annotated[str, _bounds(schema), AfterValidator(_no_nul)]
            case {"type": "array"}:
                return self._array(schema)
            case {"type": "object"}:
                return self._object(schema)
        return _Anything

    def _referred(self, reference: str) -> Any:
        if reference in self._making:
            return _Anything
        if reference not in self._made:
            self._making.add(reference)
            self._made[reference] = self.annotation(self.target(reference))
            self._making.remove(reference)
        return self._made[reference]

    def _choice(self, schema: Any) -> Any:
        made = self.annotation(schema)
        if made is None or not isinstance(schema, Mapping):
            return made
        # Findings name the choice that failed, in the schema's words rather than in pydantic's.
        reference = schema.get("$ref", "").rpartition("/")[2]
        return Annotated[made, Tag(reference or str(schema.get("format", schema.get("type"))))]

    def _array(self, schema: Mapping[str, Any]) -> Any:
        entries = schema.get("prefixItems")
        if entries and schema.get("minItems") == schema.get("maxItems") == len(entries):
            return types.GenericAlias(tuple, tuple(self.annotation(entry) for entry in entries))
        # Other tuples have defaults, as named ones may.
        items = _Anything if entries else self.annotation(schema.get("items"))
        made: Any = types.GenericAlias(list, items)
        if schema.get("uniqueItems"):
            made = Annotated[made, AfterValidator(_distinct)]
        return Annotated[made, _bounds(schema)]

    def _object(self, schema: Mapping[str, Any]) -> Any:
        further = schema.get("additionalProperties")
        values = self.annotation(further)
        if "properties" in schema:
            base = _Object if further is False else _open(values)
            return self.model(schema, schema.get("title", "Object"), base)
        names = self.annotation({**schema.get("propertyNames", {}), "type": "string"})
        return Annotated[types.GenericAlias(dict, (names, values)), _bounds(schema)]


def _open(values: Any) -> Any:
    """Give the base of objects that take names beside their properties."""
    further = {"__pydantic_extra__": types.GenericAlias(dict, (_Text, values))}
    body = {"__module__": __name__, "__annotations__": further}
    return types.new_class(
        "_Open", (_Object,), {"extra": "allow"}, lambda names: names.update(body)
    )


def _any_of(choices: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, choices)


def _literal(values: list[Any]) -> Any:
    made = Literal.__getitem__(tuple(values))
    kinds = {type(value) for value in values}
    if bool in kinds or not kinds & {int, float}:
        return made
    return Annotated[made, BeforeValidator(_bool_apart)]


def _bounds(schema: Mapping[str, Any]) -> Any:
    names = _BOUNDS[schema["type"]]
    bounds = {names[name]: schema[name] for name in names.keys() & schema.keys()}
    if "pattern" in bounds:
        try:
            TypeAdapter(Annotated[str, Field(pattern=bounds["pattern"])])
        except SchemaError:  # pydantic's engine knows no look-around; a class may choose Python's
            bounds["pattern"] = re.compile(bounds["pattern"])
    return Field(**bounds)


def _default(facts: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """Give the default of a field that may be left out, as an argument of ``Field``."""
    left_out = {"default_factory": types.NoneType}
    if facts.get("writeOnly"):  # a secret's default is masked
        return left_out
    try:
        default = _storable(facts["default"])
    except (KeyError, ValueError):  # pydantic writes NaN, which is no JSON
        return left_out
    try:
        # Strict, for the class does not check its defaults either: "3" stays "3".
        return {"default": TypeAdapter(annotation).validate_json(json.dumps(default), strict=True)}
    except ValidationError:
        return {"default": default}


def _with_time_text(schema: Any) -> Any:
    """Mark plain text, alone or in lists, as naming times."""
    match schema:
        case {"type": "string"} if not {"format", "enum", "const"} & schema.keys():
            return {**schema, "format": _TIME_TEXT}
        case {"type": "array", "items": items}:
            return {**schema, "items": _with_time_text(items)}
        case {"anyOf": [*choices]}:
            return {**schema, "anyOf": [_with_time_text(choice) for choice in choices]}
    return schema
