"""A user's class: description, construction, validation, and how it runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    Field,
    FutureDatetime,
    HttpUrl,
    NaiveDatetime,
    PastDatetime,
    field_validator,
    model_validator,
)

from deployments.custom_workflow.earth2studio_shim import FOLDERS
from deployments.custom_workflow.run_interface import attach_run
from deployments.custom_workflow.user_class import InvalidConfig, UserClass
from workflows.custom import CustomWorkflow
from workflows.errors import InvalidParameters, Problem

if TYPE_CHECKING:
    from earth2studio.io import IOBackend

ROOT = Path(__file__).parents[3]
ID = "exec_1_00000000"
NOON = datetime(2024, 1, 1, 12)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the variables that `isolate_import` sets permanently."""
    for name in (*FOLDERS, "EARTH2STUDIO_API_ACTIVE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], UserClass]:
    """A function that loads a class of this module, or of another by its full path."""
    return lambda path: UserClass(
        path if ":" in path else f"{__name__}:{path}", tmp_path / "scratch"
    )


Load = Callable[[str], UserClass]


def even(value: int) -> int:
    if value % 2:
        raise ValueError("an even number is needed")
    return value


class Plain:
    """What it does,
    in two lines.
    """

    name = "plain"

    def __init__(self, model_type: str, device: str = "cuda", levels: list[int] = [500]) -> None:  # noqa: B006
        self.made_with = (model_type, device, levels)

    def __call__(
        self,
        io: IOBackend,
        start_time: list[datetime] = [NOON],  # noqa: B006
        nsteps: int = 4,
        num_steps: int | None = None,
        n_steps: int = 4,
        grid: Literal["tiny", "full"] = "tiny",
        fill_value: float = float("nan"),
        *args: Any,
        seed: int,
        **kwargs: Any,
    ) -> None: ...


class Nameless:
    description = "said in an attribute"

    def __call__(self, io: Any) -> None:
        """Not this."""


class Blank(Nameless):
    name = ""
    description = ""


class Outer:
    class Inner(Nameless):
        name = "inner"


class Failing:
    def __init__(self) -> None:
        raise OSError(2, "No such file or directory", "/weights")

    def __call__(self, io: Any) -> None: ...


class RaisesWithoutText:
    def __call__(self, io: Any) -> None: ...

    @classmethod
    def validate_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        raise KeyError


class ValidatesItself:
    def __call__(self, io: Any, nsteps: int = 4) -> None: ...

    @classmethod
    def validate_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any] | None:
        match parameters.get("nsteps"):
            case 13:
                raise ValueError("13 brings bad luck")
            case 7:
                return {"nsteps": 8}
        return None


class InheritsValidation(ValidatesItself):
    def __call__(self, io: Any, nsteps: int = 4) -> None: ...


class OwnModel:
    class Parameters(BaseModel):
        n_steps: int = 4
        region: str = "world"

    def __call__(self, io: Any, **parameters: Any) -> None: ...


class OwnFieldValidator(OwnModel):
    class Parameters(OwnModel.Parameters):
        @field_validator("n_steps")
        @classmethod
        def _even(cls, value: int) -> int:
            return even(value)


class OwnModelValidator(OwnModel):
    class Parameters(OwnModel.Parameters):
        @model_validator(mode="after")
        def _fits(self) -> OwnModelValidator.Parameters:
            if self.region == "moon" and self.n_steps > 1:
                raise ValueError("the moon has no weather")
            return self


class AnnotatedValidator:
    def __call__(self, io: Any, n_steps: Annotated[int, AfterValidator(even)] = 4) -> None: ...


class Window(BaseModel):
    hours: Annotated[int, AfterValidator(even)] = 6


class NestedValidator:
    def __call__(self, io: Any, windows: dict[str, list[Window]] = {}) -> None: ...  # noqa: B006


class AwareWindow(BaseModel):
    start: AwareDatetime


class Demanding:
    def __call__(
        self,
        io: Any,
        aware: AwareDatetime = datetime(2024, 1, 1, tzinfo=UTC),
        aware_list: list[AwareDatetime] = [],  # noqa: B006
        aware_or_none: AwareDatetime | None = None,
        aware_in_window: AwareWindow | None = None,
        plain: datetime = NOON,
        naive: NaiveDatetime = NOON,
        since_2024: Annotated[datetime, Field(ge=datetime(2024, 1, 1))] = NOON,
        since_2024_utc: Annotated[datetime, Field(ge=datetime(2024, 1, 1, tzinfo=UTC))] = NOON,
        future: FutureDatetime | None = None,
        past: PastDatetime | None = None,
        url: HttpUrl | None = None,
        exact: Decimal = Decimal(1),
        day: Annotated[date, Field(ge=date(2000, 1, 1))] = date(2024, 1, 1),
        lead: Annotated[timedelta, Field(ge=timedelta(hours=6))] = timedelta(hours=6),
        address: IPv4Address | None = None,
        checked: Annotated[int, AfterValidator(even)] = 2,
    ) -> None: ...


class WithoutCall:
    name = "without"


# Description.


def test_a_class_needs_no_base(load: Load) -> None:
    described = load("Plain").describe()
    assert load("Plain").name == "plain"
    assert described.description == "What it does,\nin two lines."
    properties = described.parameters_schema["properties"]
    assert list(properties) == [
        "start_time",
        "nsteps",
        "num_steps",
        "n_steps",
        "grid",
        "fill_value",
        "seed",
    ]
    assert described.parameters_schema["required"] == ["seed"]
    assert described.parameters_schema["additionalProperties"] is False
    assert properties["start_time"]["default"] == ["2024-01-01T12:00:00"]
    assert properties["grid"]["enum"] == ["tiny", "full"]


def test_step_parameters_have_earth2studios_bounds(load: Load) -> None:
    properties = load("Plain").describe().parameters_schema["properties"]
    bounds = {"minimum": 1, "maximum": 1000}
    assert properties["nsteps"].items() >= bounds.items()
    assert properties["num_steps"]["anyOf"][0].items() >= bounds.items()
    assert not properties["n_steps"].keys() & bounds.keys()


def test_a_description_is_strict_json(load: Load) -> None:
    described = load("Plain").describe()
    assert described.parameters_schema["properties"]["fill_value"]["default"] is None
    json.dumps(described.model_dump(), allow_nan=False)


@pytest.mark.parametrize(
    ("path", "name", "description"),
    [
        ("Nameless", "Nameless", "said in an attribute"),
        ("Blank", "Blank", ""),
        ("Outer.Inner", "inner", "said in an attribute"),
    ],
)
def test_name_and_description_have_defaults(
    load: Load, path: str, name: str, description: str
) -> None:
    assert load(path).name == name
    assert load(path).describe().description == description


@pytest.mark.parametrize("path", ["WithoutCall", "even", "NOON"])
def test_a_workflow_must_be_a_callable_class(load: Load, path: str) -> None:
    with pytest.raises(TypeError, match=f"{path} is not a class with a __call__ method"):
        load(path)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("no_such_module:Storms", ModuleNotFoundError, "no_such_module"),
        (f"{__name__}:Missing", AttributeError, "Missing"),
        (f"{__name__}:Plain.Missing", AttributeError, "Missing"),
    ],
)
def test_a_wrong_path_is_reported(
    load: Load, path: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load(path)


def test_a_module_that_exits_does_not_end_the_replica(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_exiting.py").write_text("import sys\nsys.exit('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="SystemExit: no licence"):
        load("users_exiting:Storms")


def test_a_module_that_was_added_later_is_imported(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError):
        load("users_late:Storms")
    (tmp_path / "users_late.py").write_text("class Storms:\n    def __call__(self, io): ...\n")
    assert load("users_late:Storms").name == "Storms"


# Construction.


def test_an_instance_is_created_with_config_and_defaults(load: Load) -> None:
    assert load("Plain").create({"model_type": "dlwp"}).made_with == ("dlwp", "cuda", [500])
    made = load("Plain").create({"model_type": "dlwp", "levels": ["850"]})
    assert made.made_with == ("dlwp", "cuda", [850])
    assert isinstance(load("Nameless").create({}), Nameless)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": 5}, "config.model_type: Input should be a valid string"),
        (
            {"model_type": "dlwp", "levels": [500, "high"]},
            "config.levels.1: Input should be a valid integer",
        ),
        ({}, "config.model_type: Field required"),
        (
            {"model_type": "dlwp", "devise": "cpu"},
            "config.devise: unknown; there are model_type, device, levels",
        ),
    ],
)
def test_a_wrong_config_names_the_field(load: Load, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        load("Plain").create(config)
    assert str(refused.value).startswith(message)


def test_all_problems_of_a_config_are_named(load: Load) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.model_type: .*; config\.devise: "):
        load("Plain").create({"model_type": 5, "devise": "cpu"})


def test_a_class_without_constructor_accepts_no_config(load: Load) -> None:
    with pytest.raises(InvalidConfig, match="config.device: unknown"):
        load("Nameless").create({"device": "cpu"})


def test_errors_of_the_constructor_are_passed_on(load: Load) -> None:
    with pytest.raises(FileNotFoundError, match="/weights"):
        load("Failing").create({})


# Validation.


@pytest.mark.parametrize(
    ("path", "parameters", "field", "message"),
    [
        ("Plain", {"seed": 1, "nsteps": 0}, "parameters.nsteps", "greater than or equal to 1"),
        ("Plain", {"seed": 1, "nsteps": 1001}, "parameters.nsteps", "less than or equal to 1000"),
        ("Plain", {}, "parameters.seed", "Field required"),
        (
            "Plain",
            {"seed": 1, "start_time": ["now"]},
            "parameters.start_time.0",
            "valid datetime",
        ),
        ("Plain", {"seed": 1, "sed": 1}, "parameters.sed", "unknown; there are start_time, nsteps"),
        ("OwnModel", {"n_steps": "x"}, "parameters.n_steps", "valid integer"),
        ("OwnFieldValidator", {"n_steps": 3}, "parameters.n_steps", "an even number is needed"),
        ("OwnModelValidator", {"region": "moon"}, "parameters", "the moon has no weather"),
        ("AnnotatedValidator", {"n_steps": 3}, "parameters.n_steps", "an even number is needed"),
        (
            "NestedValidator",
            {"windows": {"a": [{}, {"hours": 3}]}},
            "parameters.windows.a.1.hours",
            "an even number is needed",
        ),
        ("ValidatesItself", {"nsteps": 13}, "parameters", "13 brings bad luck"),
        ("ValidatesItself", {"nsteps": 0}, "parameters.nsteps", "greater than or equal to 1"),
        ("InheritsValidation", {"nsteps": 13}, "parameters", "13 brings bad luck"),
        ("RaisesWithoutText", {}, "parameters", "KeyError"),
    ],
)
def test_wrong_parameters_name_the_field(
    load: Load, path: str, parameters: dict[str, Any], field: str, message: str
) -> None:
    (problem,) = load(path).problems_with(parameters)
    assert problem.field == field
    assert message in problem.message


def test_all_problems_of_parameters_are_named(load: Load) -> None:
    problems = load("Plain").problems_with({"nsteps": 0, "grid": "huge"})
    assert [problem.field for problem in problems] == [
        "parameters.nsteps",
        "parameters.grid",
        "parameters.seed",
    ]


@pytest.mark.parametrize(
    ("path", "parameters", "arguments"),
    [
        ("OwnModel", {"n_steps": "2"}, {"n_steps": 2, "region": "world"}),
        ("ValidatesItself", {"nsteps": "2"}, {"nsteps": 2}),
        ("ValidatesItself", {"nsteps": 7}, {"nsteps": 8}),
        ("NestedValidator", {"windows": {"a": [{}]}}, {"windows": {"a": [{"hours": 6}]}}),
        ("Nameless", {}, {}),
    ],
)
def test_valid_parameters_become_arguments(
    load: Load, path: str, parameters: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert load(path).problems_with(parameters) == []
    assert load(path).validated(parameters) == arguments


def test_times_become_naive_datetimes(load: Load) -> None:
    arguments = load("Plain").validated({"start_time": ["2025-01-01T06:00:00"], "seed": 1})
    assert arguments["start_time"] == [datetime(2025, 1, 1, 6)]
    assert load("Plain").validated({"seed": 1})["start_time"] == [NOON]


# What JSON Schema cannot say.


def asked(load: Load, path: str, **parameters: Any) -> tuple[dict[str, Any], list[str]]:
    """Return what the class receives of a request, and the fields that it refuses."""
    user_class = load(path)
    received = CustomWorkflow("w", user_class.describe(), "zarr").validate(parameters)
    values = received.model_dump(mode="json", exclude_unset=True)
    return values, [problem.field for problem in user_class.problems_with(values)]


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("aware", "2025-01-01T02:00:00+02:00", True),
        ("aware", "2025-01-01T00:00:00Z", True),
        ("aware_list", ["2025-01-01T00:00:00Z"], True),
        ("aware_or_none", "2025-01-01T00:00:00-05:00", True),
        ("aware_in_window", {"start": "2025-01-01T00:00:00Z"}, True),
        ("plain", "2025-01-01T02:00:00+02:00", True),
        ("naive", "2025-01-01T02:00:00+02:00", True),
        ("since_2024", "2024-06-01T00:00:00+02:00", True),
        ("since_2024", "2023-06-01T00:00:00Z", False),
        ("since_2024_utc", "2024-06-01T00:00:00Z", True),
        ("since_2024_utc", "2023-06-01T00:00:00Z", False),
        ("future", "1999-01-01T00:00:00Z", False),
        ("past", "2999-01-01T00:00:00Z", False),
        ("url", "https://example.org", True),
        ("url", "no url", False),
        ("exact", "1.5", True),
        ("exact", "nan", False),
        ("day", "1999-01-01", False),
        ("lead", "PT1H", False),
        ("address", "not an address", False),
        ("checked", 3, False),
    ],
)
def test_a_class_is_asked_what_json_schema_cannot_say(
    load: Load, name: str, value: Any, good: bool
) -> None:
    try:
        values, refused = asked(load, "Demanding", **{name: value})
    except InvalidParameters as error:  # by its schema
        refused = [problem.field for problem in error.problems]
    assert (refused == []) is good
    assert all(field.startswith(f"parameters.{name}") for field in refused)


def test_times_keep_their_zone_only_where_the_class_needs_one(load: Load) -> None:
    text = "2025-01-01T02:00:00+02:00"
    names = ("aware", "plain", "naive", "since_2024")
    values, _ = asked(load, "Demanding", **dict.fromkeys(names, text))
    assert values == {"aware": text} | dict.fromkeys(names[1:], "2025-01-01T00:00:00")
    arguments = load("Demanding").validated(values)
    assert arguments["aware"] == datetime(2025, 1, 1, tzinfo=UTC)
    assert arguments["aware"].utcoffset() == timedelta(hours=2)
    assert arguments["plain"] == datetime(2025, 1, 1)


def test_a_time_without_the_zone_that_it_needs_is_refused(load: Load) -> None:
    with pytest.raises(InvalidParameters, match=r"parameters\.aware: .*timezone"):
        asked(load, "Demanding", aware="2025-01-01T00:00:00")


def test_one_call_does_not_change_the_defaults_of_the_next(load: Load) -> None:
    plain = load("Plain")
    plain.validated({"seed": 1})["start_time"].append(NOON)
    assert plain.validated({"seed": 1})["start_time"] == [NOON]


# Classes derived from Earth2Studio's base class.

DERIVED = """\
from datetime import datetime

from earth2studio.io import IOBackend
from earth2studio.serve.server import Earth2Workflow, WorkflowProgress, WorkflowRegistry
from earth2studio.serve.server.workflow import WorkflowParameters
from pydantic import field_validator


@WorkflowRegistry.instance().register
class Storms(Earth2Workflow):
    name = "storms"
    description = "tracks of storms"

    def __init__(self, model_type: str, device: str = "cuda"):
        super().__init__()
        self.model_type, self.device = model_type, device

    def __call__(
        self,
        io: IOBackend,
        start_time: list[datetime] = [datetime(2024, 1, 1)],
        nsteps: int = 4,
        output_format: str = "zarr",
    ):
        self.update_progress(WorkflowProgress(progress="started", total_steps=nsteps))
        folder = self.get_output_path(self.execution_id)
        (folder / "tracks.csv").write_text(f"{start_time[0]:%Y-%m-%d}")
        self.update_execution_data(self.execution_id, {"metadata": {"tracks": 1}})
        self.update_progress(WorkflowProgress(current_step=nsteps))


class Silent(Earth2Workflow):
    def __init__(self):
        super().__init__()

    def __call__(self, io: IOBackend):
        pass


class Strict(Earth2Workflow):
    '''Refuses odd steps.'''

    def __init__(self):
        super().__init__()

    def __call__(self, io: IOBackend, nsteps: int = 4):
        pass

    @classmethod
    def validate_parameters(cls, parameters):
        validated = super().validate_parameters(parameters)
        if validated.nsteps % 2:
            raise ValueError("an even number is needed")
        return validated


class Broken(Earth2Workflow):
    def __init__(self):
        raise RuntimeError("no weights")

    def __call__(self, io: IOBackend):
        pass


class BaseOfParametersAlone:
    class Parameters(WorkflowParameters):
        start_time: list[datetime] = [datetime(2024, 1, 1)]

    def __call__(self, io, start_time):
        pass


class ParametersWithValidator(BaseOfParametersAlone):
    class Parameters(BaseOfParametersAlone.Parameters):
        @field_validator("start_time")
        @classmethod
        def _one(cls, value):
            return value
"""


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], UserClass]]:
    """A function that loads a class of `DERIVED`."""
    folder = tmp_path_factory.mktemp("derived")
    (folder / "users_derived.py").write_text(DERIVED)
    sys.path.insert(0, str(folder))
    yield lambda name: UserClass(f"users_derived:{name}", folder / "scratch")
    sys.path.remove(str(folder))
    sys.modules.pop("users_derived", None)


@pytest.mark.models
def test_a_derived_class_is_described_as_by_earth2studios_server(derived: Load) -> None:
    storms = derived("Storms")
    described = storms.describe()
    assert (storms.name, described.description) == ("storms", "tracks of storms")
    assert list(described.parameters_schema["properties"]) == [
        "start_time",
        "nsteps",
        "output_format",
    ]
    steps = described.parameters_schema["properties"]["nsteps"]
    assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 1000, 4)
    assert described.parameters_schema["additionalProperties"] is False


@pytest.mark.models
def test_the_docstring_of_the_base_class_is_ignored(derived: Load) -> None:
    assert (derived("Silent").name, derived("Silent").describe().description) == ("Silent", "")
    assert derived("Strict").describe().description == "Refuses odd steps."


@pytest.mark.models
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.model_type: Field required"),
        ({"model_type": 5}, "config.model_type: Input should be a valid string"),
        (
            {"model_type": "dlwp", "devise": "cpu"},
            "config.devise: unknown; there are model_type, device",
        ),
    ],
)
def test_a_wrong_config_of_a_derived_class_names_the_field(
    derived: Load, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig) as refused:
        derived("Storms").create(config)
    assert str(refused.value).startswith(message)


@pytest.mark.models
def test_errors_of_a_derived_constructor_are_passed_on(derived: Load) -> None:
    with pytest.raises(RuntimeError, match="no weights"):
        derived("Broken").create({})


@pytest.mark.models
def test_problems_wrapped_by_earth2studio_are_named_by_field(derived: Load) -> None:
    # Its base class wraps pydantic's error in a ValueError.
    assert derived("Storms").problems_with({"nsteps": 0, "x": 1}) == [
        Problem(
            "parameters.nsteps",
            "Input should be greater than or equal to 1",
            "greater_than_equal",
        ),
        Problem(
            "parameters.x",
            "unknown; there are start_time, nsteps, output_format",
            "extra_forbidden",
        ),
    ]
    (problem,) = derived("Storms").problems_with({"start_time": ["2025-01-01"]})
    assert problem.field == "parameters.start_time"
    assert "not a valid ISO 8601 datetime" in problem.message
    assert derived("Strict").problems_with({"nsteps": 3}) == [
        Problem("parameters", "an even number is needed")
    ]
    assert derived("Strict").problems_with({"nsteps": 2}) == []


@pytest.mark.models
def test_a_derived_class_runs_without_redis(derived: Load, tmp_path: Path) -> None:
    storms = derived("Storms")
    instance = storms.create({"model_type": "dlwp"})
    assert (instance.model_type, instance.device) == ("dlwp", "cuda")
    reports: list[dict[str, Any]] = []
    attach_run(instance, ID, tmp_path, lambda values: reports.append(dict(values)))
    arguments = storms.validated({"start_time": ["2025-01-02T00:00:00"], "nsteps": 3})
    assert arguments == {
        "start_time": [datetime(2025, 1, 2)],
        "nsteps": 3,
        "output_format": "zarr",
    }
    instance(io=None, **arguments)
    assert (tmp_path / "tracks.csv").read_text() == "2025-01-02"
    assert reports == [{"progress": "started", "total_steps": 3}, {"current_step": 3}]
    assert instance.redis_client is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exits_in_validation_code_become_problems(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    (tmp_path / "users_ending.py").write_text(
        "class Ending:\n"
        "    def __call__(self, io): pass\n"
        "    @classmethod\n"
        f"    def validate_parameters(cls, parameters): raise {error.__name__}('\\udcff')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_ending", raising=False)
    [problem] = load("users_ending:Ending").problems_with({})
    assert error.__name__ in problem.message
    problem.message.encode()


@pytest.mark.parametrize("name", ["_hidden", "model_config"])
def test_parameter_names_that_pydantic_rejects_are_refused(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "users_hiding.py").write_text(
        f"class Hiding:\n    def __call__(self, io, {name}: int = 0): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_hiding", raising=False)
    with pytest.raises(TypeError, match=f"'{name}', which cannot be served: rename it"):
        load("users_hiding:Hiding")
