"""Settings of models, data sources and forecasts of the operator."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from serve_app.settings.preflight import find_missing
from tests.serve_app.settings.helpers import FCN3, STORMSCOPE, parse, refused

ARGS: dict[str, Any] = {
    "models": {"sfno": {"loader": "earth2studio.models.px:SFNO", "replicas": 3}},
    "data_sources": {"gfs": {"loader": "earth2studio.data:GFS"}},
    "workflows": {
        "forecasts": {
            "sfno_ensemble": {
                "model": "sfno",
                "data_sources": ["gfs", "ifs"],
                "perturbation": {"loader": "no_such_module:Noise", "options": {"amplitude": 0.1}},
            }
        }
    },
}


def changed(value: Any, *path: str) -> dict[str, Any]:
    """Return the settings with one more or another value."""
    args = copy.deepcopy(ARGS)
    inner = args
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return args


def test_a_forecast_is_declared() -> None:
    settings = parse(ARGS)
    assert settings.callable_workflows == (FCN3, STORMSCOPE, "sfno_ensemble")
    (forecast,) = settings.forecasts
    assert forecast.description == "Forecast by sfno from gfs or ifs"
    assert forecast.perturbation is not None
    assert forecast.perturbation.options == {"amplitude": 0.1}
    assert settings.max_running["sfno_ensemble"] == 3 + 3
    assert settings.models.own["sfno"].resolved_num_gpus == 1.0


def test_only_parts_of_callable_workflows_are_used() -> None:
    exposed = parse(changed(["sfno_ensemble"], "workflows", "exposed"))
    assert exposed.used_models == ["sfno"]
    assert exposed.used_data_sources == ["gfs", "ifs"]
    built_in = parse(changed([FCN3], "workflows", "exposed"))
    assert (built_in.used_models, built_in.used_data_sources) == (["fcn3"], ["ifs"])


def test_the_summary_hides_the_values_of_options() -> None:
    args = changed({"loader": "a:b", "options": {"key": "secret"}}, "data_sources", "gfs")
    summary = parse(args).summary()
    assert summary["data_sources"]["gfs"]["options"] == ["key"]
    assert summary["models"]["sfno"]["num_gpus"] == 1.0
    assert "secret" not in str(summary)


def test_loaders_that_are_not_found_here_are_named() -> None:
    missing = find_missing(parse(ARGS), lambda module: module != "no_such_module")
    assert [str(finding) for finding in missing] == [
        "workflows.forecasts.sfno_ensemble.perturbation.loader: there is no module no_such_module "
        "here; the replicas that use it must find it"
    ]


FORECAST = ("workflows", "forecasts", "sfno_ensemble")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (changed({}, "models", "dlwp"), "args.models.dlwp.loader: Field required"),
        (changed("synthetic", "models", "sfno", "loader"), 'must be "module:name", as in "earth2'),
        (changed(1, "models", "sfno", "replica"), "args.models.sfno.replica: unknown key; did you"),
        (changed({"loader": "a:b"}, "models", "packager"), "'packager' is a part of the server"),
        (changed({"loader": "a:b"}, "models", "S F"), "lower-case letters, digits and underscores"),
        (changed({"loader": "a:b"}, "models", "gfs"), "'gfs' names more than one model, data"),
        (changed({"loader": "a:b"}, "models", "sfno_ensemble"), "names more than one model"),
        (changed("dlwp", *FORECAST, "model"), "unknown model 'dlwp'; there are fcn3, sfno"),
        (changed("stormscope", *FORECAST, "model"), "unknown model 'stormscope'; there are fcn3"),
        (changed(["era5"], *FORECAST, "data_sources"), "unknown data source 'era5'; there are ifs"),
        (changed([], *FORECAST, "data_sources"), "data_sources: Tuple should have at least 1 item"),
        (changed(5, *FORECAST, "cycle_hours"), "cycle_hours: must divide 24"),
        (changed(1, *FORECAST, "steps"), "sfno_ensemble.steps: unknown key; did you mean max_step"),
        (changed({}, "workflows", "forecasts", FCN3), f"a workflow {FCN3!r} exists already"),
        (changed(["sfno"], "workflows", "exposed"), "unknown workflow 'sfno'; known are"),
        (
            changed([{"class": "a:sfno_ensemble"}], "workflows", "custom"),
            "a workflow 'sfno_ensemble' exists already",
        ),
    ],
)
def test_what_cannot_work_is_refused(args: dict[str, Any], message: str) -> None:
    assert message in "\n".join(refused(args))
