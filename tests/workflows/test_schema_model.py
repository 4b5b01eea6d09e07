"""A model made from a schema accepts what the model behind the schema accepts."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, create_model

from workflows.base import Parameters, to_problems
from workflows.errors import Problem
from workflows.schema_model import parameters_from_schema


class ClassParameters(BaseModel):
    """Base of Earth2Studio's parameter models, but with finite numbers only, as in ours."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Window(BaseModel):
    hours: int = 6
    weights: dict[str, float] = {"t2m": 1.0}


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: int


class Counted(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]
    x: int = 1


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float


class Pair(NamedTuple):
    first: int
    second: str = "x"


def model_of(**fields: Any) -> type[Parameters]:
    """Return our model for fields as `create_model` takes them, via a schema in JSON."""
    schema = create_model("Parameters", __base__=ClassParameters, **fields).model_json_schema()
    return parameters_from_schema(json.loads(json.dumps(schema)))


def dumped(model: type[Parameters], **values: Any) -> dict[str, Any]:
    return model.model_validate(values).model_dump(mode="json")


def found(model: type[Parameters], **values: Any) -> list[Problem]:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(values)
    return to_problems(refused.value, "parameters", list(model.model_fields))


class Forecast(ClassParameters):
    """Parameters of a user's workflow."""

    start_time: list[datetime] = [datetime(2024, 1, 1)]
    n_steps: int = 1
    num_steps: int = Field(6, ge=1, le=1000, description="Number of steps")
    variables: Sequence[str] | None = ("t2m",)
    grid: Literal["full", "tiny"] = "full"
    colour: Colour = Colour.RED
    window: Window = Window()
    weights: dict[str, float] = {"t2m": 0.5}
    box: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = (1, 2)
    bound: float | None = Field(None, gt=0)
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1, max_length=3)
    levels: set[int] = {500}
    day: date = date(2024, 1, 2)
    at: time = time(12)
    lead: timedelta = timedelta(days=400, hours=6)
    key: UUID = UUID(int=1)
    path: Path = Path("/data")
    exact: Decimal = Decimal("1.50")
    choice: int | str = "a"
    anything: Any = None
    bare: dict = {}  # type: ignore[type-arg]
    pair: Pair = Pair(1)
    model_type: str = "px"


def test_an_empty_request_has_the_defaults_of_the_schema() -> None:
    schema = Forecast.model_json_schema()
    model = parameters_from_schema(schema, "Forecast")
    assert issubclass(model, Parameters)
    assert model.__name__ == "Forecast"
    values = model.model_validate({})
    assert values.model_dump(mode="json") == {
        name: entry["default"] for name, entry in schema["properties"].items()
    }
    assert values.start_time == [datetime(2024, 1, 1)]  # type: ignore[attr-defined]
    assert values.lead == timedelta(days=400, hours=6)  # type: ignore[attr-defined]
    again = Forecast.model_validate(values.model_dump(mode="json"))
    assert again == Forecast(variables=["t2m"])  # JSON knows no tuples


@pytest.mark.parametrize(
    ("values", "fields", "words"),
    [
        ({"n_steps": "x"}, ["n_steps"], "valid integer"),
        ({"n_steps": 1.5}, ["n_steps"], "valid integer"),
        ({"num_steps": 0}, ["num_steps"], "greater than or equal to 1"),
        ({"num_steps": 1001}, ["num_steps"], "less than or equal to 1000"),
        ({"variables": ["t2m", 1]}, ["variables.1"], "valid string"),
        ({"variables": "t2m"}, ["variables"], "valid list"),
        ({"grid": "huge"}, ["grid"], "'full' or 'tiny'"),
        ({"colour": "green"}, ["colour"], "'red' or 'blue'"),
        ({"window": {"hours": "x"}}, ["window.hours"], "valid integer"),
        ({"window": 3}, ["window"], "valid dictionary"),
        ({"window": {"weights": {"t2m": "x"}}}, ["window.weights.t2m"], "valid number"),
        ({"weights": {"t2m": math.inf}}, ["weights.t2m"], "finite number"),
        ({"box": [1]}, ["box.1"], "Field required"),
        ({"box": [1, "a", 2]}, ["box"], "at most 2 items"),
        ({"bound": 0}, ["bound"], "greater than 0"),
        ({"bound": "nan"}, ["bound"], "finite number"),
        ({"bound": 10**400}, ["bound"], "valid number"),
        ({"seeds": []}, ["seeds"], "at least 1 item"),
        ({"seeds": [1, -1]}, ["seeds.1"], "greater than or equal to 0"),
        ({"day": "2024-02-30"}, ["day"], "valid date"),
        ({"at": "25:00"}, ["at"], "valid time"),
        ({"lead": "six hours"}, ["lead"], "valid timedelta"),
        ({"key": "1"}, ["key"], "valid UUID"),
        ({"choice": []}, ["choice.integer", "choice.string"], "valid integer"),
        ({"bare": []}, ["bare"], "valid dictionary"),
    ],
)
def test_values_that_the_class_refuses_are_refused_by_field(
    values: dict[str, Any], fields: list[str], words: str
) -> None:
    problems = found(parameters_from_schema(Forecast.model_json_schema()), **values)
    assert [problem.field for problem in problems] == [f"parameters.{field}" for field in fields]
    assert words in problems[0].message
    with pytest.raises(ValidationError):
        Forecast.model_validate(values)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ({"n_steps": "3", "choice": "3"}, {"n_steps": 3, "choice": "3"}),
        ({"n_steps": 10**50}, {"n_steps": 10**50}),
        ({"variables": None}, {"variables": None}),
        ({"window": {"hours": "1"}}, {"window": {"hours": 1}}),
        ({"box": ["2", "b"]}, {"box": [2, "b"]}),
        ({"levels": [850, 500, 850]}, {"levels": [850, 500]}),
        ({"lead": "PT6H"}, {"lead": "PT6H"}),
        ({"exact": "0.10"}, {"exact": "0.10"}),
        ({"anything": {"a": [1, None, "x"]}}, {"anything": {"a": [1, None, "x"]}}),
        ({"pair": [1]}, {"pair": [1]}),
    ],
)
def test_accepted_values_are_stored(values: dict[str, Any], stored: dict[str, Any]) -> None:
    model = parameters_from_schema(Forecast.model_json_schema())
    dump = model.model_validate(values).model_dump(mode="json", exclude_unset=True)
    assert dump == stored
    assert Forecast.model_validate(dump) == Forecast.model_validate(values)


def test_unknown_parameters_are_refused_with_the_known_names() -> None:
    [problem] = found(model_of(n_steps=(int, 1), grid=(str, "full")), nsteps=3)
    assert problem.field == "parameters.nsteps"
    assert problem.message == "unknown; there are n_steps, grid"


def test_required_fields_stay_required() -> None:
    [problem] = found(model_of(start=(int, ...), stop=(int | None, ...), step=(int, 1)), start=1)
    assert (problem.field, problem.kind) == ("parameters.stop", "missing")


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        model_of(n=(int, 1))().n = 2  # type: ignore[attr-defined]


def test_objects_keep_their_rule_for_unknown_keys() -> None:
    model = model_of(closed=(Closed, Closed(x=1)), window=(Window, Window()), extra=(Counted, None))
    [problem] = found(model, closed={"x": 1, "y": 2})
    assert (problem.field, problem.kind) == ("parameters.closed.y", "extra_forbidden")
    assert dumped(model, window={"other": 1})["window"]["other"] == 1
    assert dumped(model, extra={"y": "2"})["extra"] == {"x": 1, "y": 2}
    assert [problem.field for problem in found(model, extra={"y": "b"})] == ["parameters.extra.y"]


def test_the_keys_of_a_dictionary_are_checked() -> None:
    model = model_of(by_name=(dict[Literal["a", "b"], int], Field({}, max_length=1)))
    assert dumped(model, by_name={"a": 1}) == {"by_name": {"a": 1}}
    assert "'a' or 'b'" in found(model, by_name={"c": 1})[0].message
    assert "at most 1 item" in found(model, by_name={"a": 1, "b": 1})[0].message


def test_problems_in_unions_name_the_choice() -> None:
    model = model_of(
        pet=(Annotated[Cat | Dog, Field(discriminator="kind")], ...), either=(Cat | Dog, 0)
    )
    assert dumped(model, pet={"kind": "cat"})["pet"] == {"kind": "cat", "lives": 9}
    assert [p.field for p in found(model, pet={"kind": "dog"})] == ["parameters.pet.dog.weight"]
    assert "'cat', 'dog'" in found(model, pet={"kind": "cow"})[0].message
    assert "kind" in found(model, pet={})[0].message
    fields = [p.field for p in found(model, pet={"kind": "cat"}, either={"kind": "dog"})]
    assert fields == ["parameters.either.Cat.kind", "parameters.either.Dog.weight"]


def test_recursive_models_are_checked_to_the_first_recursion() -> None:
    model = model_of(root=(Node, ...), other=(Node | None, None))
    tree = {"value": 1, "children": [{"value": 2, "children": []}]}
    assert dumped(model, root=tree)["root"] == tree
    assert [p.field for p in found(model, root={"value": "x"})] == ["parameters.root.value"]
    assert dumped(model, root={"value": 1, "children": ["x"]})["root"]["children"] == ["x"]
    whole = parameters_from_schema(Node.model_json_schema())
    assert dumped(whole, value=1) == {"value": 1, "children": []}


def test_defaults_that_the_schema_lacks_are_omitted() -> None:
    class Inner(BaseModel):
        made: list[int] = Field(default_factory=list)
        kept: int = 1

    model = model_of(
        made=(list[int], Field(default_factory=list)),
        secret=(SecretStr, SecretStr("s")),
        inner=(Inner, ...),
    )
    assert dumped(model, inner={}) == {"inner": {"kept": 1}}
    given = {"made": [1], "secret": "t", "inner": {"made": []}}
    assert dumped(model, **given) == {**given, "inner": {"made": [], "kept": 1}}
    nan = parameters_from_schema({"properties": {"x": {"type": "number", "default": math.nan}}})
    assert dumped(nan) == {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("default", [None, "3", "x", [1], True, {"a": 1}])
def test_a_default_of_another_type_is_kept(default: Any) -> None:
    model = model_of(n=(int, default), t=(datetime, default))
    assert dumped(model) == {"n": default, "t": default}
    assert model.model_validate({}).model_dump(exclude_unset=True) == {}
    # A request may not send it.
    assert found(model, n=None)[0].field == "parameters.n"


# Deliberate differences from the class.


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, True),
        (float, False),
        (int | None, True),
        (list[int], [True]),
        (dict[str, float], {"a": True}),
        (Literal[1, 2], True),
    ],
)
def test_true_and_false_are_not_numbers(annotation: Any, value: Any) -> None:
    [problem] = found(model_of(x=(annotation, ...)), x=value)
    assert problem.field.startswith("parameters.x")
    assert "not true or false" in problem.message or "1 or 2" in problem.message


def test_true_and_false_are_accepted_as_booleans() -> None:
    model = model_of(flag=(bool, ...), either=(int | bool, ...), exact=(Literal[True, "auto"], ...))
    dump = dumped(model, flag="yes", either=False, exact=True)
    assert [dump["flag"], dump["either"], dump["exact"]] == [True, False, True]
    assert dump["either"] is False


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2024-01-01T06:00:00", "2024-01-01T06:00:00"),
        ("2024-01-01 06:00", "2024-01-01T06:00:00"),
        ("2024-01-01T06:00:00Z", "2024-01-01T06:00:00"),
        ("2024-01-01T00:00:00+02:00", "2023-12-31T22:00:00"),
        ("2023-12-31T19:00:00.250000-05:00", "2024-01-01T00:00:00.250000"),
    ],
)
def test_times_become_naive_utc(text: str, utc: str) -> None:
    model = model_of(init=(datetime, ...), times=(list[datetime] | None, None))
    values = model.model_validate({"init": text, "times": [text]})
    assert values.init == datetime.fromisoformat(utc)  # type: ignore[attr-defined]
    assert values.model_dump(mode="json") == {"init": utc, "times": [utc]}


def test_a_default_time_becomes_naive_utc() -> None:
    assert dumped(model_of(init=(datetime, datetime(2024, 1, 1, tzinfo=UTC)))) == {
        "init": "2024-01-01T00:00:00"
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("2024-01-01", "must have a date and a time"),
        ("1704067200", "must have a date and a time"),
        (1704067200, "must be ISO 8601 text"),
        (True, "must be ISO 8601 text"),
        ("2024-02-30T00:00:00", "not an ISO 8601 time"),
        ("2024-01-01T00:00\0", "not an ISO 8601 time"),
        ("0001-01-01T00:00:00+01:00", "between 1 and 9999"),
        ("9999-12-31T23:00:00-01:00", "between 1 and 9999"),
    ],
)
def test_times_are_text_with_a_date_and_a_time(value: Any, words: str) -> None:
    model = model_of(init=(datetime, ...), times=(list[datetime] | None, None))
    first, second = found(model, init=value, times=[value])
    assert (first.field, second.field) == ("parameters.init", "parameters.times.0")
    assert words in first.message
    assert words in second.message


def test_times_as_text_are_checked_and_kept_as_sent() -> None:
    model = model_of(
        start_time=(str, "2024-01-01"),
        forecast_times=(list[str] | None, None),
        label=(str, "2024-01-01"),
    )
    sent = {
        "start_time": "2024-01-01 06:00Z",
        "forecast_times": ["2024-01-01T00:00:00+02:00", "20240101T00"],
        "label": "today",
    }
    assert dumped(model) == {
        "start_time": "2024-01-01",
        "forecast_times": None,
        "label": "2024-01-01",
    }
    assert dumped(model, **sent) == sent
    first, second = found(model, start_time="2024-01-01", forecast_times=[sent["start_time"], "xT"])
    assert (first.field, second.field) == ("parameters.start_time", "parameters.forecast_times.1")
    assert "must have a date and a time" in first.message
    assert "not an ISO 8601 time" in second.message


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, "a\0"),
        (Path, "a\0"),
        (list[str], ["a", "\0"]),
        (dict[str, int], {"\0": 1}),
        (Any, {"a": [{"b\0": 1}]}),
        (Any, ["\0"]),
        (Window, {"other": "\0"}),
    ],
)
def test_strings_must_not_contain_nul(annotation: Any, value: Any) -> None:
    [problem] = found(model_of(x=(annotation, ...)), x=value)
    assert problem.field.startswith("parameters.x")
    assert problem.message == "NUL characters are not allowed"


def test_numbers_must_be_finite_even_without_a_schema() -> None:
    for value in (math.nan, [math.inf], {"a": [-math.inf]}):
        assert found(model_of(x=(Any, ...)), x=value)[0].message == "must be a finite number"


# Schemas that pydantic does not write, or that have no translation.


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        False,
        None,
        7,
        "string",
        [],
        {"type": "quantity"},
        {"type": 7},
        {"type": ["string", "null"]},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": 3},
        {"type": "string", "minLength": "x"},
        {"type": "integer", "minimum": "x"},
        {"type": "integer", "multipleOf": 0.5},
        {"type": "array", "minItems": "x"},
        {"type": "array", "prefixItems": 5},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"_hidden": {"type": "integer"}}},
        {"type": "object", "properties": {"model_dump": {"type": "integer"}}},
        {"type": "object", "properties": {"a": 1}, "required": True},
        {"type": "object", "propertyNames": 5},
        {"enum": []},
        {"enum": "ab"},
        {"anyOf": []},
        {"anyOf": 3},
        {"allOf": [{"type": "integer"}, {"minimum": 1}]},
        {"not": {"type": "string"}},
        {"oneOf": [{"type": "integer"}], "discriminator": {"propertyName": "kind"}},
        {"$ref": "#/$defs/Missing"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/Loop"},
        {"$ref": 5},
    ],
    ids=str,
)
def test_schemas_without_a_translation_accept_anything(schema: Any) -> None:
    odd = {"alone": schema, "listed": {"type": "array", "items": schema}}
    model = parameters_from_schema(
        {"properties": odd, "$defs": {"Loop": {"$ref": "#/$defs/Loop"}}, "required": list(odd)}
    )
    for value in (None, 1, "x", [1, {"a": None}], {"a": [True]}):
        assert dumped(model, alone=value, listed=[value]) == {"alone": value, "listed": [value]}
    assert [p.field for p in found(model, alone="\0", listed=1)] == [
        "parameters.alone",
        "parameters.listed",
    ]


def test_unusual_parts_of_a_schema_do_not_affect_the_rest() -> None:
    entries: dict[str, Any] = {
        "named": {"type": "object", "properties": {"n": {"type": "integer"}}, "title": "a b"},
        "listed": {"enum": [[1], {"a": 1}, None]},
        "unique": {"type": "array", "items": {}, "uniqueItems": True},
    }
    model = parameters_from_schema({"properties": entries})
    good = {"named": {"n": 1}, "listed": [1], "unique": [[1], [1]]}
    assert dumped(model, **good) == good
    assert [p.field for p in found(model, named={"n": "x"}, listed=[2], unique=1)] == [
        "parameters.named.n",
        "parameters.listed",
        "parameters.unique",
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["copy", "schema", "json", "model_type", "class", "self", "a-b"])
def test_names_of_pydantics_methods_are_allowed(name: str) -> None:
    model = parameters_from_schema({"properties": {name: {"type": "integer", "default": 1}}})
    assert (dumped(model), dumped(model, **{name: "2"})) == ({name: 1}, {name: 2})


def test_a_schema_without_fields_accepts_none() -> None:
    assert dumped(parameters_from_schema({})) == {}
    with pytest.raises(ValidationError):
        parameters_from_schema({}).model_validate({"x": 1})


def test_a_single_allof_is_merged() -> None:
    model = parameters_from_schema(
        {"properties": {"x": {"allOf": [{"type": "integer"}], "default": 2, "maximum": 3}}}
    )
    assert dumped(model) == {"x": 2}
    assert "less than or equal to 3" in found(model, x=4)[0].message


def test_patterns_use_pydantics_engine_or_pythons() -> None:
    patterns = {"rust": "^a$", "python": "^a(?=b)"}
    model = parameters_from_schema(
        {"properties": {k: {"type": "string", "pattern": v} for k, v in patterns.items()}}
    )
    assert dumped(model, rust="a", python="ab") == {"rust": "a", "python": "ab"}
    assert [p.field for p in found(model, rust="a\n", python="a")] == [
        "parameters.rust",
        "parameters.python",
    ]


# For any annotation, the same requests are accepted.

Shape = tuple[Any, st.SearchStrategy[Any]]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | NUMBERS | TEXT | NUMBERS.map(str)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2)
)
LEAVES: list[Shape] = [
    (int, NUMBERS | st.integers().map(str)),
    (float, NUMBERS | NUMBERS.map(str)),
    (str, TEXT),
    (bool, st.booleans() | st.sampled_from(["yes", "off", "1", 0, 1, 1.0, 2])),
    (None, st.none()),
    (Any, JSON),
    (date, st.dates().map(str) | st.datetimes().map(datetime.isoformat)),
    (time, st.times().map(str)),
    (timedelta, st.sampled_from(["PT6H", "-P1DT3H", "P400D", "1 12:00:00", "12:00"])),
    (UUID, st.uuids().map(str)),
    (Colour, st.sampled_from(["red", "blue", "green"])),
    (Literal["a", 1, None, 2.5], st.sampled_from(["a", 1, 1.0, None, 2.5, "1"])),  # type: ignore[valid-type]
    (Annotated[int, Field(ge=-1, lt=3)], st.integers(-3, 4)),
    (Annotated[float, Field(gt=0, multiple_of=0.5)], st.sampled_from([0, 0.5, 0.7, 1])),
    (Annotated[str, Field(min_length=1, max_length=2, pattern="^[ab]")], st.text("abc")),
]


def _model(fields: dict[str, Shape], optional: bool, extra: Any) -> Shape:
    model = create_model(
        "Nested",
        __config__=ConfigDict(extra=extra, allow_inf_nan=False),
        **{name: (kind, None if optional else ...) for name, (kind, _) in fields.items()},
    )
    values = {name: value for name, (_, value) in fields.items()}
    some = st.fixed_dictionaries({}, optional={**values, "further": SCALARS})
    return model, st.fixed_dictionaries(values) | some


def _composed(inner: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
    def array(shape: Shape) -> Shape:
        return list[shape[0]], st.lists(shape[1], max_size=3)  # type: ignore[name-defined]

    def short(shape: Shape) -> Shape:
        kind = Annotated[list[shape[0]], Field(min_length=1, max_length=2)]  # type: ignore[name-defined]
        return kind, st.lists(shape[1], max_size=3)

    def mapping(shape: Shape) -> Shape:
        return dict[str, shape[0]], st.dictionaries(TEXT, shape[1], max_size=2)  # type: ignore[name-defined]

    def pair(shapes: tuple[Shape, Shape]) -> Shape:
        (one, ones), (two, twos) = shapes
        return tuple[one, two], st.tuples(ones, twos).map(list) | st.lists(ones, max_size=3)  # type: ignore[valid-type]

    def either(shapes: tuple[Shape, Shape]) -> Shape:
        (one, ones), (two, twos) = shapes
        return one | two if one is not two else one, ones | twos

    return st.one_of(
        inner.map(array),
        inner.map(short),
        inner.map(mapping),
        st.tuples(inner, inner).map(pair),
        st.tuples(inner, inner).map(either),
        st.builds(
            _model,
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
            st.booleans(),
            st.sampled_from(["forbid", "ignore", "allow"]),
        ),
    )


SHAPES = st.recursive(st.sampled_from(LEAVES), _composed, max_leaves=5)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.data())
def test_exactly_the_same_requests_are_accepted(shape: Shape, data: st.DataObject) -> None:
    annotation, values = shape
    real = create_model("Parameters", __base__=ClassParameters, x=(annotation, ...))
    ours = parameters_from_schema(real.model_json_schema())
    for _ in range(5):
        request = {"x": data.draw(values | JSON)}
        try:
            expected = real.model_validate(request)
        except ValidationError:
            with pytest.raises(ValidationError):
                ours.model_validate(request)
        else:
            # The class reads our dump like the original request.
            dump = ours.model_validate(request).model_dump(mode="json", exclude_unset=True)
            assert real.model_validate(json.loads(json.dumps(dump))) == expected
