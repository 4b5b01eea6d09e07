"""Settings of custom workflows."""

from pathlib import Path
from typing import Any

import pytest

from tests.serve_app.settings.helpers import FCN3, PASSWORD, STORMSCOPE, parse, refused
from workflows import WORKFLOWS

STORMS = {"class": "no_such_module.workflows:Storms"}


def custom(*settings: Any, **workflows: Any) -> dict[str, Any]:
    return {"workflows": {"custom": list(settings), **workflows}}


def test_a_custom_workflow_only_needs_a_class() -> None:
    settings = parse(custom(STORMS))
    (storms,) = settings.custom_workflows
    assert (storms.name, storms.resolved_name, storms.config) == (None, "Storms", {})
    assert (storms.replicas, storms.num_gpus, storms.output_format) == (1, 1.0, "zarr")
    assert storms.deployment == "CustomWorkflow-Storms"
    assert settings.callable_workflows == settings.listed_workflows == (*WORKFLOWS, "Storms")


def test_all_settings_of_a_custom_workflow() -> None:
    settings = {
        **STORMS,
        "name": "storms-2.1",
        "config": {"model_type": "dlwp", "levels": [500]},
        "replicas": 3,
        "num_gpus": 0.5,
        "output_format": "netcdf4",
        "window_mb": 64,
        "cancel_grace_s": 2,
    }
    (storms,) = parse(custom(settings)).custom_workflows
    assert storms.model_dump(by_alias=True) == settings


def test_the_name_of_a_custom_workflow_is_read_from_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "raise RuntimeError('imported')\nclass Mine:\n    name = 'storms'\n"
    (tmp_path / "users_settings.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    storms = {"class": "users_settings:Mine"}
    assert parse(custom(storms, exposed=["storms"])).callable_workflows == ("storms",)
    renamed = custom({**storms, "name": "other"}, exposed=["other"])
    assert parse(renamed).callable_workflows == ("other",)


def test_max_running_of_a_custom_workflow_defaults_to_its_replicas() -> None:
    several = custom({**STORMS, "replicas": 3}, {**STORMS, "name": "b"})
    assert parse(several).max_running == {FCN3: 4, STORMSCOPE: 4, "Storms": 3, "b": 1}
    limited = parse({**several, "queue": {"max_running": 7}})
    assert limited.max_running == dict.fromkeys((FCN3, STORMSCOPE, "Storms", "b"), 7)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (custom({}), "args.workflows.custom[0].class: Field required"),
        (custom({"path": "a:B"}), "args.workflows.custom[0].path: unknown key; known are class, "),
        (custom({"class": "a.b"}), 'args.workflows.custom[0].class: must be "module:Class"'),
        (
            custom(STORMS, {**STORMS, "name": "b", "replica": 2}),
            "args.workflows.custom[1].replica: unknown key; did you mean replicas?",
        ),
        (
            custom({**STORMS, "max_size": 2}),
            "args.workflows.custom[0].max_size: unknown key; it belongs in applications[].args.que",
        ),
        (
            custom({**STORMS, "num_gpus": True}),
            "args.workflows.custom[0].num_gpus: Input should be",
        ),
        (
            custom({**STORMS, "config": ["a"]}),
            "args.workflows.custom[0].config: Input should be a ",
        ),
        (custom({**STORMS, "output_format": "grib"}), "args.workflows.custom[0].output_format: "),
        (
            custom({**STORMS, "name": "a/b"}),
            "args.workflows.custom[0].name: 'a/b' cannot name a workflow: up to 100 letters",
        ),
        (
            custom({**STORMS, "name": "workflows"}),
            "args.workflows.custom[0].name: a workflow cannot",
        ),
        (
            custom({"class": "no_such_module:workflows"}),
            "args.workflows.custom: no_such_module:workflows: a workflow cannot be called "
            "'workflows': that is a route of its own; set another `name`",
        ),
        (
            custom(STORMS, STORMS),
            f"args.workflows.custom: {STORMS['class']}: a workflow 'Storms' exists already; "
            "set another `name`",
        ),
        (
            custom({**STORMS, "name": FCN3}),
            f"args.workflows.custom: {STORMS['class']}: a workflow '{FCN3}' exists already; ",
        ),
        # Also if the built-in workflow is not exposed.
        (
            custom({**STORMS, "name": FCN3}, exposed=[FCN3]),
            f"args.workflows.custom: {STORMS['class']}: a workflow '{FCN3}' exists already; ",
        ),
        ({"workflows": {"custom": STORMS}}, "args.workflows.custom: Input should be a valid "),
        (
            custom(STORMS, exposed=["Storms", "storms"]),
            "args.workflows.exposed[1]: unknown workflow 'storms'; known are "
            f"{FCN3}, {STORMSCOPE}, Storms",
        ),
        (custom(STORMS, warmup=["storms"]), "args.workflows.warmup[0]: unknown workflow 'storms'"),
    ],
)
def test_invalid_custom_workflows_are_reported(args: dict[str, Any], message: str) -> None:
    (line,) = refused(args)
    assert line.startswith(message)


@pytest.mark.parametrize(
    "name",
    [
        *("packager", "initial_conditions", "fcn3", "ifs"),
        *("interpolation", "stormscope", "goes16", "goes19"),
    ],
)
def test_a_custom_workflow_cannot_have_a_reserved_name(name: str) -> None:
    (line,) = refused(custom({**STORMS, "name": name}))
    assert line.endswith(f"'{name}' is a part of the server; set another `name`")


def test_exposed_names_are_not_checked_while_custom_workflows_are_invalid() -> None:
    args = custom({**STORMS, "replicas": 0}, exposed=["Storms"], warmup=[FCN3])
    (line,) = refused(args, EXPOSED_WORKFLOWS="Storms")
    assert line.startswith("args.workflows.custom[0].replicas: ")


def test_a_custom_workflow_can_be_exposed_or_for_warmup() -> None:
    settings = parse(custom(STORMS, {**STORMS, "name": "b"}, exposed=["Storms"], warmup=["b"]))
    assert settings.listed_workflows == ("Storms",)
    assert settings.callable_workflows == ("Storms", "b")
    hidden = parse(custom(STORMS, {**STORMS, "name": "b"}, exposed=["b"]))
    assert [workflow.resolved_name for workflow in hidden.custom_workflows] == ["b"]
    assert hidden.max_running == {"b": 1}


def test_the_environment_can_expose_a_custom_workflow() -> None:
    settings = parse(custom(STORMS), EXPOSED_WORKFLOWS="Storms")
    assert settings.callable_workflows == ("Storms",)
    (line,) = refused(custom(STORMS), EXPOSED_WORKFLOWS="Storms,b")
    known = f"{FCN3}, {STORMSCOPE}, Storms"
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'b'; known are {known}"


@pytest.mark.parametrize("args", [{}, {"workflows": {}}, custom()])
def test_the_environment_cannot_expose_an_unknown_workflow(args: dict[str, Any]) -> None:
    (line,) = refused(args, EXPOSED_WORKFLOWS="Storms")
    known = f"{FCN3}, {STORMSCOPE}"
    assert line == f"EXPOSED_WORKFLOWS: unknown workflow 'Storms'; known are {known}"


def test_the_summary_shows_keys_of_config_but_not_values() -> None:
    args = custom({**STORMS, "config": {"token": PASSWORD, "device": {"key": PASSWORD}}})
    summary = parse(args).summary()
    (storms,) = summary["workflows"]["custom"]
    assert (storms["name"], storms["config"]) == ("Storms", ["device", "token"])
    assert PASSWORD not in str(summary)
    assert PASSWORD not in "".join(refused(custom({**args["workflows"]["custom"][0], "x": 1})))
