"""Parameter models made from JSON schemas, for user classes that must not be imported here.

A user's class is imported in its replicas only. They report the schema of its parameters, and check
every request that this schema accepts with the class itself before it is queued. A schema without a
translation therefore makes the model accept more than the class does, but never raises.

Pydantic does the validation because a request must be read as the class's own model reads it:
numeric strings become numbers, sets lose repetitions, union members are chosen by pydantic's rules,
and defaults are filled in. Validators of JSON schemas, such as jsonschema, do none of this.
"""

from __future__ import annotations

import functools
import json
import operator
import re
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

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

from workflows.base import Parameters, reject_bool
from workflows.schema_types import (
    FORMATS,
    TIME_TEXT,
    TIMEZONE,
    Anything,
    AwareTime,
    Text,
    check_storable,
    distinct,
    reject_nul,
    replace_bool,
)

TIME_FIELDS = ("start_time", "forecast_times")
"""Parameters in which Earth2Studio requires a date and a time, even where they are text."""


def parameters_from_schema(schema: Mapping[str, Any], name: str = "Parameters") -> type[Parameters]:
    """Return a parameter model that accepts what the model behind a schema accepts.

    It is stricter where pydantic guesses: true and false are not numbers, times are ISO 8601 text,
    and strings contain no NUL. Times become naive UTC, unless the schema says that they need a
    zone. A parameter that a request omits, and that has
    no default in the schema, is None and not dumped: only the class knows its default.

    Pass ``model_dump(mode="json", exclude_unset=True)`` to the class: pydantic does not validate
    defaults, so a class may refuse its own if it receives it, such as None for a ``str``.

    Parameters
    ----------
    schema : mapping
        As returned by pydantic's ``model_json_schema()``.
    name : str, optional
        Name of the model.

    Raises
    ------
    Exception
        If pydantic cannot have a field of that name, such as ``_x`` or ``model_dump``. The class's
        own model cannot have one either.
    """
    translation = _Translation(schema.get("$defs", {}))
    if "$ref" in schema:  # how pydantic writes a recursive model
        schema = translation.target(schema["$ref"])
    properties = {
        field: _require_time_text(entry) if field in TIME_FIELDS else entry
        for field, entry in schema.get("properties", {}).items()
    }
    return translation.model({**schema, "properties": properties}, name, _Object)


_AsAny: Any = SerializeAsAny
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
    def _without_omitted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        omitted = {name for name in fields if fields[name].default_factory} - self.model_fields_set
        return {name: value for name, value in handler(self).items() if name not in omitted}


class _Translation:
    """Translates schemas into Python types; `definitions` are the targets of references."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._translated: dict[str, Any] = {}
        self._in_progress: set[str] = set()

    def target(self, reference: str) -> Any:
        return self._definitions[reference.removeprefix("#/$defs/")]

    def model(self, schema: Mapping[str, Any], name: str, base: type[_Object]) -> type[Parameters]:
        fields: dict[str, Any] = {}
        for field, entry in schema["properties"].items():
            annotation = self.annotation(entry)
            facts = entry if isinstance(entry, Mapping) else {}
            options = {key: facts[key] for key in ("title", "description") if key in facts}
            if field not in schema.get("required", ()):
                options |= _default(facts, annotation)
            # Serialized as any type, since defaults are not validated.
            fields[field] = (_AsAny[annotation], Field(**options))
        with warnings.catch_warnings():  # about fields that hide methods, such as "copy"
            warnings.simplefilter("ignore", UserWarning)
            return create_model(name, __base__=base, __doc__=schema.get("description"), **fields)

    def annotation(self, schema: Any) -> Any:
        try:
            translated = self._translate(schema)
            TypeAdapter(translated)  # raises if bounds do not fit their type
        except Exception:  # no translation: the class checks again
            return Anything
        return translated

    def _translate(self, schema: Any) -> Any:
        match schema:
            case {"$ref": reference}:
                return self._referenced(reference)
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
                return Annotated[int, _bounds(schema), BeforeValidator(reject_bool)]
            case {"type": "number"}:
                return Annotated[float, _bounds(schema), BeforeValidator(reject_bool)]
            case {"type": "string", "format": "date-time"} if TIMEZONE in schema:
                return AwareTime
            case {"type": "string", "format": str(form)} if form in FORMATS:
                return FORMATS[form]
            case {"type": "string"}:
                return Annotated[str, _bounds(schema), AfterValidator(reject_nul)]
            case {"type": "array"}:
                return self._array(schema)
            case {"type": "object"}:
                return self._object(schema)
        return Anything

    def _referenced(self, reference: str) -> Any:
        if reference in self._in_progress:
            return Anything
        if reference not in self._translated:
            self._in_progress.add(reference)
            self._translated[reference] = self.annotation(self.target(reference))
            self._in_progress.remove(reference)
        return self._translated[reference]

    def _choice(self, schema: Any) -> Any:
        annotation = self.annotation(schema)
        if annotation is None or not isinstance(schema, Mapping):
            return annotation
        # Problems name the choice that failed by its name in the schema.
        reference = schema.get("$ref", "").rpartition("/")[2]
        return Annotated[
            annotation, Tag(reference or str(schema.get("format", schema.get("type"))))
        ]

    def _array(self, schema: Mapping[str, Any]) -> Any:
        entries = schema.get("prefixItems")
        if entries and schema.get("minItems") == schema.get("maxItems") == len(entries):
            return types.GenericAlias(tuple, tuple(self.annotation(entry) for entry in entries))
        # Other tuples are named tuples with defaults.
        items = Anything if entries else self.annotation(schema.get("items"))
        array: Any = types.GenericAlias(list, items)
        if schema.get("uniqueItems"):
            array = Annotated[array, AfterValidator(distinct)]
        return Annotated[array, _bounds(schema)]

    def _object(self, schema: Mapping[str, Any]) -> Any:
        further = schema.get("additionalProperties")
        values = self.annotation(further)
        if "properties" in schema:
            base = _Object if further is False else _open(values)
            return self.model(schema, schema.get("title", "Object"), base)
        names = self.annotation({**schema.get("propertyNames", {}), "type": "string"})
        return Annotated[types.GenericAlias(dict, (names, values)), _bounds(schema)]


def _open(values: Any) -> Any:
    """Return the base of objects that accept keys beside their properties."""
    further = {"__pydantic_extra__": types.GenericAlias(dict, (Text, values))}
    body = {"__module__": __name__, "__annotations__": further}
    return types.new_class(
        "_Open", (_Object,), {"extra": "allow"}, lambda names: names.update(body)
    )


def _any_of(choices: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, choices)


def _literal(values: list[Any]) -> Any:
    literal = Literal.__getitem__(tuple(values))
    kinds = {type(value) for value in values}
    if bool in kinds or not kinds & {int, float}:
        return literal
    return Annotated[literal, BeforeValidator(replace_bool)]


def _bounds(schema: Mapping[str, Any]) -> Any:
    names = _BOUNDS[schema["type"]]
    bounds = {names[name]: schema[name] for name in names.keys() & schema.keys()}
    if "pattern" in bounds:
        try:
            TypeAdapter(Annotated[str, Field(pattern=bounds["pattern"])])
        except SchemaError:  # pydantic's engine has no look-around; a class may select Python's
            bounds["pattern"] = re.compile(bounds["pattern"])
    return Field(**bounds)


def _default(facts: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """Return the default of an optional field, as an argument of ``Field``."""
    omitted = {"default_factory": types.NoneType}
    if facts.get("writeOnly"):  # a secret's default is masked
        return omitted
    try:
        default = check_storable(facts["default"])
    except (KeyError, ValueError):  # pydantic writes NaN, which JSON cannot hold
        return omitted
    try:
        # Strict, since the class does not convert its defaults: "3" stays "3".
        return {"default": TypeAdapter(annotation).validate_json(json.dumps(default), strict=True)}
    except ValidationError:
        return {"default": default}


def _require_time_text(schema: Any) -> Any:
    """Mark text, alone or in lists, as containing times."""
    match schema:
        case {"type": "string"} if not {"format", "enum", "const"} & schema.keys():
            return {**schema, "format": TIME_TEXT}
        case {"type": "array", "items": items}:
            return {**schema, "items": _require_time_text(items)}
        case {"anyOf": [*choices]}:
            return {**schema, "anyOf": [_require_time_text(choice) for choice in choices]}
    return schema
