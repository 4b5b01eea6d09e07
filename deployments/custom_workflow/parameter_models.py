"""Pydantic models of the parameters that a user's class takes."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DatetimeSchema

from workflows.schema_types import TIMEZONE

STEP_BOUNDS = {"num_steps": (1, 1000), "nsteps": (1, 1000)}
"""Bounds that Earth2Studio's server sets on parameters with these names."""


class ParametersSchema(GenerateJsonSchema):
    """Writes JSON schemas that also say which times need a zone."""

    def datetime_schema(self, schema: DatetimeSchema) -> JsonSchemaValue:
        """Return the schema of a time."""
        written = super().datetime_schema(schema)
        # Otherwise "aware", or the only offset that is accepted.
        if schema.get("tz_constraint", "naive") == "naive":
            return written
        return {**written, TIMEZONE: "required"}


def parameter_model(
    owner: type, attribute: str, method: str, skip: Collection[str] = ()
) -> type[BaseModel]:
    """Return the class's own model of a method's parameters, or one made from its signature.

    Parameters
    ----------
    attribute : str
        Where the class may have a model of its own.
    method : str
        Whose signature is read otherwise.
    skip : collection of str, optional
        Parameters that no request or configuration sets.

    Raises
    ------
    TypeError
        If the name of a parameter cannot name a pydantic field.
    """
    own = getattr(owner, attribute, None)
    if inspect.isclass(own) and issubclass(own, BaseModel):
        return own
    function = getattr(owner, method)
    if function is object.__init__:
        return create_model(attribute, __config__=ConfigDict(extra="forbid"))
    parameters = {
        name: parameter
        for name, parameter in list(inspect.signature(function).parameters.items())[1:]
        if name not in skip
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    for name in parameters:
        if name.startswith("_") or (name.startswith("model_") and hasattr(BaseModel, name)):
            raise TypeError(f"{method} has a parameter {name!r}, which cannot be served: rename it")
    hints = _resolve_hints(function, parameters)
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        low, high = STEP_BOUNDS.get(name, (None, None)) if method == "__call__" else (None, None)
        fields[name] = (hints.get(name, Any), Field(default, ge=low, le=high))
    return create_model(
        f"{owner.__name__}{attribute}",
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True),
        **fields,
    )


def _resolve_hints(function: Any, names: Collection[str]) -> dict[str, Any]:
    """Resolve the annotations of these parameters only: others may name unimported types."""

    def chosen() -> None:
        pass

    annotations = getattr(function, "__annotations__", {})
    chosen.__annotations__ = {name: annotations[name] for name in names if name in annotations}
    known = getattr(inspect.unwrap(function), "__globals__", {})
    return get_type_hints(chosen, known, include_extras=True)
