"""A user's class: what is read from it, how it is made and called, and what its import may do."""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, field_validator, model_validator

from deployments.custom_workflow.earth2studio_shim import FOLDERS, isolate_import
from deployments.custom_workflow.user_class import InvalidConfig, Told, UserClass, prepare
from workflows.errors import Problem

if TYPE_CHECKING:
    from earth2studio.io import IOBackend

ROOT = Path(__file__).parents[3]
ID = "exec_1_00000000"
NOON = datetime(2024, 1, 1, 12)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what `isolate_import` sets for good."""
    for name in (*FOLDERS, "EARTH2STUDIO_API_ACTIVE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], UserClass]:
    """Give a class of this module, or of another if its path is whole."""
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


class Deaf(Nameless):
    name = ""
    description = ""


class NoClass:
    class Inner(Nameless):
        name = "inner"


class Picky:
    def __init__(self) -> None:
        raise OSError(2, "No such file or directory", "/weights")

    def __call__(self, io: Any) -> None: ...


class Speechless:
    def __call__(self, io: Any) -> None: ...

    @classmethod
    def validate_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        raise KeyError


class ChecksItself:
    def __call__(self, io: Any, nsteps: int = 4) -> None: ...

    @classmethod
    def validate_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any] | None:
        match parameters.get("nsteps"):
            case 13:
                raise ValueError("13 brings bad luck")
            case 7:
                return {"nsteps": 8}
        return None


class InheritsChecks(ChecksItself):
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


class WithoutCall:
    name = "without"


# What a class is.


def test_a_class_is_read_without_a_base(load: Load) -> None:
    described = load("Plain").describe()
    assert load("Plain").name == "plain"
    assert described.description == "What it does,\nin two lines."
    assert not described.own_validation
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


def test_steps_have_the_bounds_of_the_peer(load: Load) -> None:
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
        ("Deaf", "Deaf", ""),
        ("NoClass.Inner", "inner", "said in an attribute"),
    ],
)
def test_what_a_class_does_not_say_is_left_open(
    load: Load, path: str, name: str, description: str
) -> None:
    assert load(path).name == name
    assert load(path).describe().description == description


@pytest.mark.parametrize("path", ["WithoutCall", "even", "NOON"])
def test_what_cannot_be_called_is_no_workflow(load: Load, path: str) -> None:
    with pytest.raises(TypeError, match=f"{path} is no class with a __call__ method"):
        load(path)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("no_such_module:Storms", ModuleNotFoundError, "no_such_module"),
        (f"{__name__}:Missing", AttributeError, "Missing"),
        (f"{__name__}:Plain.Missing", AttributeError, "Missing"),
    ],
)
def test_a_path_that_leads_nowhere_says_so(
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


def test_a_module_that_was_repaired_is_imported(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError):
        load("users_late:Storms")
    (tmp_path / "users_late.py").write_text("class Storms:\n    def __call__(self, io): ...\n")
    assert load("users_late:Storms").name == "Storms"


# What it is made with.


def test_it_is_made_with_its_config_and_its_own_defaults(load: Load) -> None:
    assert load("Plain").make({"model_type": "dlwp"}).made_with == ("dlwp", "cuda", [500])
    made = load("Plain").make({"model_type": "dlwp", "levels": ["850"]})
    assert made.made_with == ("dlwp", "cuda", [850])
    assert isinstance(load("Nameless").make({}), Nameless)


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
def test_a_wrong_config_is_named(load: Load, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        load("Plain").make(config)
    assert str(refused.value).startswith(message)


def test_everything_wrong_with_a_config_is_named(load: Load) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.model_type: .*; config\.devise: "):
        load("Plain").make({"model_type": 5, "devise": "cpu"})


def test_a_class_without_constructor_takes_no_config(load: Load) -> None:
    with pytest.raises(InvalidConfig, match="config.device: unknown"):
        load("Nameless").make({"device": "cpu"})


def test_what_a_constructor_raises_is_passed_on(load: Load) -> None:
    with pytest.raises(FileNotFoundError, match="/weights"):
        load("Picky").make({})


# What it says of parameters.


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("Plain", False),
        ("OwnModel", False),
        ("ChecksItself", True),
        ("InheritsChecks", True),
        ("OwnFieldValidator", True),
        ("OwnModelValidator", True),
        ("AnnotatedValidator", True),
        ("NestedValidator", True),
    ],
)
def test_it_is_said_whether_a_class_has_checks_of_its_own(load: Load, path: str, own: bool) -> None:
    assert load(path).describe().own_validation is own


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
        ("ChecksItself", {"nsteps": 13}, "parameters", "13 brings bad luck"),
        ("ChecksItself", {"nsteps": 0}, "parameters.nsteps", "greater than or equal to 1"),
        ("Speechless", {}, "parameters", "KeyError"),
    ],
)
def test_what_is_wrong_with_parameters_is_named(
    load: Load, path: str, parameters: dict[str, Any], field: str, message: str
) -> None:
    (problem,) = load(path).problems_with(parameters)
    assert problem.field == field
    assert message in problem.message


def test_everything_wrong_with_parameters_is_named(load: Load) -> None:
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
        ("ChecksItself", {"nsteps": "2"}, {"nsteps": 2}),
        ("ChecksItself", {"nsteps": 7}, {"nsteps": 8}),
        ("NestedValidator", {"windows": {"a": [{}]}}, {"windows": {"a": [{"hours": 6}]}}),
        ("Nameless", {}, {}),
    ],
)
def test_right_parameters_become_the_arguments_of_a_call(
    load: Load, path: str, parameters: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert load(path).problems_with(parameters) == []
    assert load(path).validated(parameters) == arguments


def test_times_arrive_as_naive_datetimes(load: Load) -> None:
    arguments = load("Plain").validated({"start_time": ["2025-01-01T06:00:00"], "seed": 1})
    assert arguments["start_time"] == [datetime(2025, 1, 1, 6)]
    assert load("Plain").validated({"seed": 1})["start_time"] == [NOON]


def test_one_call_does_not_change_the_defaults_of_the_next(load: Load) -> None:
    plain = load("Plain")
    plain.validated({"seed": 1})["start_time"].append(NOON)
    assert plain.validated({"seed": 1})["start_time"] == [NOON]


# What it may use while it runs.


class Slotted:
    __slots__ = ("seen",)

    def __call__(self, io: Any) -> None: ...


class SlottedForIt:
    __slots__ = ("execution_id",)

    def __call__(self, io: Any) -> None: ...


class OwnWays:
    """Has some of it already, for use elsewhere."""

    execution_id = "none"

    def __init__(self) -> None:
        self.told: list[object] = []

    def __call__(self, io: Any) -> None: ...

    def update_progress(self, progress: object) -> None:
        self.told.append(progress)
        self.update_execution_data(self.execution_id, progress)

    def update_execution_data(self, execution_id: str, updates: object) -> None:
        raise RuntimeError("wants a Redis")

    def get_output_path(self, execution_id: str) -> Path:
        raise RuntimeError("wants a folder")


class ReadOnly:
    def __call__(self, io: Any) -> None: ...

    @property
    def execution_id(self) -> str:
        return "mine"


Notes = list[dict[str, Any]]


def prepared(instance: Any, folder: Path = Path("/results")) -> Notes:
    notes: Notes = []
    prepare(instance, ID, folder, lambda told: notes.append(dict(told)))
    return notes


def test_a_class_without_base_is_given_what_it_may_use(tmp_path: Path) -> None:
    instance: Any = Nameless()
    notes = prepared(instance, tmp_path)
    assert instance.execution_id == ID
    assert instance.get_output_path() == instance.get_output_path(ID) == tmp_path
    instance.update_progress({"progress": "begun", "current_step": 1, "else": 5})
    instance.update_execution_data(ID, {"metadata": {"a": 1}})
    instance.update_execution_data(ID, {"progress": {"total_steps": 3}})
    assert notes == [{"progress": "begun", "current_step": 1}, {"total_steps": 3}]


def test_a_class_keeps_its_own_update_of_progress(tmp_path: Path) -> None:
    instance = OwnWays()
    notes = prepared(instance, tmp_path)
    instance.update_progress("begun")
    assert instance.told == ["begun"]
    assert notes == [{"progress": "begun"}]
    assert instance.execution_id == ID
    assert instance.get_output_path(ID) == tmp_path


def test_each_execution_has_its_own(tmp_path: Path) -> None:
    instance: Any = Nameless()
    first = prepared(instance, tmp_path / "first")
    second: Notes = []
    prepare(instance, "another", tmp_path / "second", lambda told: second.append(dict(told)))
    instance.update_progress("begun")
    assert (first, second) == ([], [{"progress": "begun"}])
    assert instance.get_output_path("another") == tmp_path / "second"
    assert instance.execution_id == "another"


def test_slots_that_a_class_does_not_have_stay_empty() -> None:
    instance = Slotted()
    assert prepared(instance) == []
    assert not hasattr(instance, "execution_id")


def test_slots_that_a_class_has_are_filled() -> None:
    instance = SlottedForIt()
    assert prepared(instance) == []
    assert instance.execution_id == ID  # type: ignore[attr-defined]


def test_a_property_of_the_classs_own_stays() -> None:
    instance: Any = ReadOnly()
    prepared(instance)
    assert instance.execution_id == "mine"
    assert instance.get_output_path() == Path("/results")


@pytest.mark.parametrize(
    ("told", "noted"),
    [
        ("begun", {"progress": "begun"}),
        ({"current_step": 2, "total_steps": None}, {"current_step": 2}),
        (
            SimpleNamespace(progress="begun", current_step=2),
            {"progress": "begun", "current_step": 2},
        ),
        ({"current_step": "2", "progress": 5}, {"current_step": 2, "progress": "5"}),
        ({"error_message": "one file is missing"}, {"error_message": "one file is missing"}),
    ],
)
def test_progress_is_told_in_several_ways(told: Any, noted: dict[str, Any]) -> None:
    instance: Any = Nameless()
    notes = prepared(instance)
    instance.update_progress(told)
    assert notes == [noted]


def test_a_step_that_is_no_number_fails_where_it_is_told() -> None:
    instance: Any = Nameless()
    notes = prepared(instance)
    with pytest.raises(ValueError, match="first"):
        instance.update_progress({"current_step": "first"})
    assert notes == []


def progress(*told: Mapping[str, Any], done: int = 0, total: int = 0) -> tuple[Any, ...]:
    pieces = Told()
    for piece in told:
        pieces.note(piece)
    made = pieces.progress(done, total)
    return made.message, made.current_step, made.total_steps, made.error_message


def test_pieces_of_progress_add_up() -> None:
    assert progress(
        {"progress": "begun", "total_steps": 9}, {"current_step": 1}, {"current_step": 2}
    ) == ("begun", 2, 9, None)
    assert progress({"progress": "begun"}, {"progress": "done"}, {"error_message": "odd"}) == (
        "done",
        0,
        0,
        "odd",
    )


def test_where_the_class_is_silent_its_output_tells_the_steps() -> None:
    assert progress(done=3, total=8) == ("3 of 8 steps", 3, 8, None)
    assert progress({"progress": "begun"}, done=3, total=8) == ("begun", 3, 8, None)
    assert progress({"current_step": 5}, done=3, total=8) == ("5 of 8 steps", 5, 8, None)
    assert progress() == ("running", 0, 0, None)


def test_steps_are_never_negative() -> None:
    assert progress({"current_step": -1, "total_steps": -1})[1:3] == (0, 0)


# Classes that derive from Earth2Studio's.

THEIRS = """\
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
        self.update_progress(WorkflowProgress(progress="begun", total_steps=nsteps))
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
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], UserClass]]:
    """Give a class of `THEIRS`."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "users_theirs.py").write_text(THEIRS)
    sys.path.insert(0, str(folder))
    yield lambda name: UserClass(f"users_theirs:{name}", folder / "scratch")
    sys.path.remove(str(folder))
    sys.modules.pop("users_theirs", None)


@pytest.mark.models
def test_a_class_of_earth2studios_is_described_as_its_own_server_does(theirs: Load) -> None:
    storms = theirs("Storms")
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
def test_what_the_base_class_says_of_itself_is_no_description(theirs: Load) -> None:
    assert (theirs("Silent").name, theirs("Silent").describe().description) == ("Silent", "")
    assert theirs("Strict").describe().description == "Refuses odd steps."


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("Storms", False),
        ("Silent", False),
        ("Strict", True),
        ("BaseOfParametersAlone", False),
        ("ParametersWithValidator", True),
    ],
)
def test_checks_of_the_base_class_are_not_the_classs_own(
    theirs: Load, name: str, own: bool
) -> None:
    assert theirs(name).describe().own_validation is own


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
def test_a_wrong_config_of_a_class_of_earth2studios_is_named(
    theirs: Load, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig) as refused:
        theirs("Storms").make(config)
    assert str(refused.value).startswith(message)


@pytest.mark.models
def test_what_a_constructor_of_earth2studios_raises_is_passed_on(theirs: Load) -> None:
    with pytest.raises(RuntimeError, match="no weights"):
        theirs("Broken").make({})


@pytest.mark.models
def test_what_earth2studio_wraps_is_named_by_field(theirs: Load) -> None:
    # Its base class says in the words of one ValueError what pydantic has found.
    assert theirs("Storms").problems_with({"nsteps": 0, "x": 1}) == [
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
    (problem,) = theirs("Storms").problems_with({"start_time": ["2025-01-01"]})
    assert problem.field == "parameters.start_time"
    assert "not a valid ISO 8601 datetime" in problem.message
    assert theirs("Strict").problems_with({"nsteps": 3}) == [
        Problem("parameters", "an even number is needed")
    ]
    assert theirs("Strict").problems_with({"nsteps": 2}) == []


@pytest.mark.models
def test_a_class_of_earth2studios_runs_without_redis(theirs: Load, tmp_path: Path) -> None:
    storms = theirs("Storms")
    instance = storms.make({"model_type": "dlwp"})
    assert (instance.model_type, instance.device) == ("dlwp", "cuda")
    notes = prepared(instance, tmp_path)
    arguments = storms.validated({"start_time": ["2025-01-02T00:00:00"], "nsteps": 3})
    assert arguments == {
        "start_time": [datetime(2025, 1, 2)],
        "nsteps": 3,
        "output_format": "zarr",
    }
    instance(io=None, **arguments)
    assert (tmp_path / "tracks.csv").read_text() == "2025-01-02"
    assert notes == [{"progress": "begun", "total_steps": 3}, {"current_step": 3}]
    assert instance.redis_client is None


# What an import does to the process.

IMPORT = """\
import logging, os, sys
made = []
sys.addaudithook(lambda event, args: made.append(args[0]) if event == "os.mkdir" else None)
root, mine = logging.getLogger(), logging.FileHandler("log", "w")
root.addHandler(mine)
root.setLevel(logging.ERROR)

import json
from pathlib import Path
from deployments.custom_workflow.earth2studio_shim import contained
from deployments.runtime.log_context import bridge_loguru

with contained(Path("scratch").absolute()):
    from earth2studio.serve.server import Earth2Workflow, WorkflowRegistry

as_it_was = root.handlers == [mine] and root.level == logging.ERROR
logging.getLogger("users").error("still written")

class Storms(Earth2Workflow):
    def __init__(self): super().__init__()
    def __call__(self, io): pass

Storms()  # makes the folder of its output once more
WorkflowRegistry.instance().register(Storms)
print(json.dumps({
    "user": os.getuid(),
    "made": [str(Path(os.fsdecode(path)).absolute()) for path in made],
    "as_it_was": as_it_was,
    "registered": WorkflowRegistry.instance().list_workflows(),
}))
"""


def as_nobody() -> list[str]:
    """Give what runs a command as a user who may write nowhere, but read all.

    The interpreter may lie in root's home.
    """
    if os.getuid():
        return []  # nobody special already
    command = shutil.which("setpriv")
    if command is None:
        pytest.skip("root cannot become somebody else without setpriv")
    try:
        group = pwd.getpwnam("nobody").pw_gid
    except KeyError:
        pytest.skip("there is no user nobody")
    read_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    become = [command, "--reuid=nobody", f"--regid={group}", "--clear-groups", *read_all]
    if subprocess.run([*become, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("root may not become nobody here")
    return become


@pytest.mark.models
@pytest.mark.parametrize("user", ["self", pytest.param("nobody", marks=pytest.mark.privileged)])
def test_importing_earth2studios_server_leaves_the_process_as_it_was(user: str) -> None:
    become = as_nobody() if user == "nobody" else []
    # Not pytest's own folder: only root may enter that.
    folder = Path(tempfile.mkdtemp(prefix="e2s-import-"))
    try:
        if become:
            shutil.chown(folder, "nobody")
        done = subprocess.run(
            [*become, sys.executable, "-c", IMPORT],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "DEFAULT_OUTPUT_DIR": str(folder / "named"),
                "EARTH2STUDIO_API_ACTIVE": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert not become or found["user"] == pwd.getpwnam("nobody").pw_uid
        # Even /outputs that is there already would be noticed: asking to make it is enough.
        assert set(found["made"]) == {str(folder / "scratch")}
        assert sorted(path.name for path in folder.iterdir()) == ["log", "scratch"]
        assert found["as_it_was"]
        assert "still written" in (folder / "log").read_text()
        assert found["registered"] == {}
        assert "Hydra" not in done.stderr
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("fails", [False, True])
def test_logging_is_put_back_whatever_is_imported(tmp_path: Path, fails: bool) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    try:
        with isolate_import(tmp_path / "deep" / "scratch"):
            logging.basicConfig(handlers=[logging.NullHandler()], level=1, force=True)
            if fails:
                raise ImportError
    except ImportError:
        assert fails
    assert (root.handlers, root.level) == before
    assert {os.environ[name] for name in FOLDERS} == {str(tmp_path / "deep" / "scratch")}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_checks_that_raise_what_ends_a_process_only_refuse(
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
def test_parameters_that_cannot_be_served_are_named(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "users_hiding.py").write_text(
        f"class Hiding:\n    def __call__(self, io, {name}: int = 0): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_hiding", raising=False)
    with pytest.raises(TypeError, match=f"'{name}', which cannot be served: rename it"):
        load("users_hiding:Hiding")
