"""Checks of configuration files: every problem is reported with its line."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app

from serve_app.app import build
from serve_app.check import DEPLOYMENTS, check_file, main
from serve_app.settings.parsing import SettingsError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("config/*.yaml"))

APPLICATION = """\
http_options: {host: 127.0.0.1, port: 8000}
applications:
  - name: earth2serve
    import_path: serve_app.app:build
    route_prefix: /
"""


def check(tmp_path: Path, text: str | bytes) -> list[str]:
    """Return the problems of a text, without the file's name."""
    file = tmp_path / "config.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    findings = check_file(str(file))
    assert all(finding.startswith(f"{file}:") for finding in findings)
    return [finding.removeprefix(f"{file}:") for finding in findings]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_configurations_of_this_repository_are_valid(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config)]) == 0
    assert capsys.readouterr().out == f"{config}: ok\n"


def test_configurations_for_a_laptop_and_a_gpu_exist() -> None:
    assert {"local.yaml", "gpu.yaml", "single-gpu.yaml"} <= {path.name for path in CONFIGS}


def test_keys_of_serve_are_valid(tmp_path: Path) -> None:
    text = APPLICATION + (
        "    args: {queue: {max_size: 3}}\n"
        "    runtime_env: {env_vars: {A: b}}\n"
        "    logging_config: {log_level: DEBUG}\n"
        "    deployments:\n"
        "      - name: FCN3\n"
        "        autoscaling_config: {min_replicas: 1, max_replicas: 2}\n"
        "        ray_actor_options: {num_gpus: 1, runtime_env: {env_vars: {A: b}}}\n"
        "      - {name: Packager, num_replicas: 3, user_config: {anything: goes}}\n"
        "grpc_options: {port: 9000}\n"
        "logging_config: {encoding: JSON}\n"
        "proxy_location: HeadOnly\n"
    )
    assert check(tmp_path, text) == []


@pytest.mark.parametrize(
    ("addition", "finding"),
    [
        ("http_option: {}", "6: http_option: unknown key; did you mean http_options?"),
        ("port: 1", "6: port: unknown key; it belongs in http_options"),
        ("grpc_options:\n  prot: 1", "7: grpc_options.prot: unknown key; did you mean port?"),
        (
            "logging_config: {log_levl: INFO}",
            "6: logging_config.log_levl: unknown key; did you mean log_level?",
        ),
        ("proxy_location: Moon", "6: proxy_location: Input should be 'Disabled', "),
        ("queue: {max_size: 3}", "6: queue: unknown key; it belongs in applications[].args"),
        (
            "    queue: {max_size: 3}",
            "6: applications[0].queue: unknown key; it belongs in applications[].args",
        ),
        (
            "    deployment: []",
            "6: applications[0].deployment: unknown key; did you mean deployments?",
        ),
        ("    args: 3", "6: applications[0].args: Input should be a valid dictionary"),
        (
            "    args:\n      queue:\n        max_size: 0",
            "8: applications[0].args.queue.max_size: Input should be greater than or equal to 1",
        ),
        (
            "    args:\n      workflows:\n        exposed:\n          - foundry_fcn3_workflow\n"
            "          - nope",
            "10: applications[0].args.workflows.exposed[1]: unknown workflow 'nope'",
        ),
        (
            "    args: &a\n      queue: {max_sise: 3}",
            "7: applications[0].args.queue.max_sise: unknown key; did you mean max_size?",
        ),
        (
            "    deployments:\n      - name: FCN3\n        num_gpus: 1",
            "8: applications[0].deployments[0].num_gpus: unknown key; it belongs in "
            "applications[].deployments[].ray_actor_options",
        ),
        (
            "    deployments:\n      - name: FCN3\n        ray_actor_options: {num_gpu: 1}",
            "8: applications[0].deployments[0].ray_actor_options.num_gpu: unknown key; "
            "did you mean num_gpus?",
        ),
        (
            "    deployments:\n      - name: FCN3\n        ray_actor_options:\n"
            "          runtime_env: {env: {}}",
            "9: applications[0].deployments[0].ray_actor_options.runtime_env.env: unknown key",
        ),
        (
            "    deployments:\n      - name: FCN3\n        autoscaling_config: {max_replica: 2}",
            "8: applications[0].deployments[0].autoscaling_config.max_replica: unknown key; "
            "did you mean max_replicas?",
        ),
        (
            "    deployments:\n      - name: FCN3\n        autoscaling_config:\n"
            "          min_replicas: -1",
            "9: applications[0].deployments[0].autoscaling_config.min_replicas: Input should be ",
        ),
        (
            "    deployments:\n      - name: Fcn3",
            "7: applications[0].deployments[0].name: unknown deployment 'Fcn3'; known are Ingress",
        ),
        (
            "    deployments:\n      - name: FCN3\n      - name: FCN3",
            "8: applications[0].deployments[1].name: FCN3 is overridden twice",
        ),
        (
            "    deployments:\n      - num_replicas: 2",
            "7: applications[0].deployments[0].name: Field required",
        ),
        (
            "    args:\n      data_dir: a\n      data_dir: b",
            "8: applications[0].args.data_dir: repeated, first set on line 7",
        ),
        ("    name: again", "6: applications[0].name: repeated, first set on line 3"),
        (
            "  - {name: b, import_path: serve_app.app:biuld, route_prefix: /b}",
            "6: applications[1].import_path: ",
        ),
        ("  - {name: b}", "6: applications[1].import_path: Field required"),
        (
            "  - {name: b, import_path: serve_app.app:build, route_prefix: null}",
            "6: applications[1].route_prefix: must be a path, such as /",
        ),
        (
            "  - {name: b, import_path: serve_app.app:build, route_prefix: /b, args: {a: 1}}",
            "6: applications[1].args.a: unknown key; ",
        ),
        ('    route: "\\0"', "6: applications[0].route: must not contain NUL"),
        (
            "    deployments:\n      - {name: FCN3, num_replicas: 10000000000}",
            "7: applications[0].deployments[0].num_replicas: must be between -2147483647 and ",
        ),
        ("grpc_options:\n  port: 65536", "7: grpc_options.port: must be between 0 and 65535"),
        (
            "    deployments:\n      - {name: FCN3, ray_actor_options: {num_gpus: 1.0e+30}}",
            "7: applications[0].deployments[0].ray_actor_options.num_gpus: must be between ",
        ),
        ("    a: [", "7: invalid YAML: while parsing a flow node"),
        ("  x: y", "6: invalid YAML: "),
        ("    args: *nothing", "6: invalid YAML: found undefined alias"),
    ],
)
def test_problems_are_reported_with_their_lines(
    tmp_path: Path, addition: str, finding: str
) -> None:
    (found,) = check(tmp_path, APPLICATION + addition + "\n")
    assert found.startswith(finding)


CONFIG_OF_A_CLASS = (
    "    args:\n      workflows:\n        custom:\n          - class: a:B\n            config:\n"
)


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        ("since: 2024-01-01", ".since: a date, which Serve cannot deploy; put it in quotes"),
        ("at: [2024-01-01 00:00:00]", ".at[0]: a datetime, which Serve cannot deploy; "),
        ("names: !!set {a, b}", ".names: a set, which Serve cannot deploy; "),
        ("blob: !!binary aGk=", ".blob: a bytes, which Serve cannot deploy; "),
        ("by_day: {2024-01-01: 1}", ".by_day: keys must be text; put the others in quotes"),
        ("mixed: {1: a, b: c}", ".mixed: keys must be text; put the others in quotes"),
        ("loop: &l [*l]", ".loop[0]: refers to a mapping or list that contains it"),
    ],
)
def test_values_that_serve_cannot_deploy_are_refused(
    tmp_path: Path, value: str, finding: str
) -> None:
    (found,) = check(tmp_path, APPLICATION + CONFIG_OF_A_CLASS + f"              {value}\n")
    place = "11: applications[0].args.workflows.custom[0].config"
    assert found.startswith(place + finding)


def test_what_json_can_hold_is_accepted(tmp_path: Path) -> None:
    config = "              a: [1, 2.5, .nan, yes, null, 2024, {1: a, 2: b}, &x [], *x]\n"
    assert check(tmp_path, APPLICATION + CONFIG_OF_A_CLASS + config) == []


def test_problems_are_reported_in_order_of_lines(tmp_path: Path) -> None:
    found = check(tmp_path, "prot: 1\n" + APPLICATION + "    a: 1\n    args: {b: 1}\n")
    assert [line.split(":")[0] for line in found] == ["1", "7", "8"]


def test_arguments_of_other_applications_are_not_checked(tmp_path: Path) -> None:
    other = "  - {name: b, import_path: other:app, route_prefix: /b, args: {their: own}}\n"
    assert check(tmp_path, APPLICATION + other) == []


def test_merged_mappings_are_checked(tmp_path: Path) -> None:
    text = APPLICATION + "    args: {<<: &d {queue: {max_size: 0}}, data_dir: x}\n"
    (found,) = check(tmp_path, text)
    assert found.startswith("6: applications[0].args.queue.max_size: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "just text",
        "a: 1\n---\nb: 2",
        "a: \x07",
        b"a: \xff\xfe",
        "a: 2025-13-45",
        "? [a, b]\n: 1",
        "applications: []",
        "applications: &a [*a]",
        "1: 2",
        "[" * 5000,
    ],
)
def test_a_file_without_a_configuration_is_refused(tmp_path: Path, text: str | bytes) -> None:
    assert check(tmp_path, text)


def test_a_missing_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing.yaml"), str(tmp_path), str(CONFIGS[0])]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/nothing.yaml: no such file or directory",
        f"{tmp_path}: is a directory",
        f"{CONFIGS[0]}: ok",
    ]


def test_the_start_reports_the_same_problems(tmp_path: Path) -> None:
    args = {"queue": {"max_size": 0}, "replicas": 2, "results_url": "az://a/b"}
    found = check(tmp_path, APPLICATION + f"    args: {args}\n")
    with pytest.raises(SettingsError) as error:
        build(args)
    assert [line.removeprefix("6: applications[0].") for line in found] == str(
        error.value
    ).splitlines()


AZURE = {
    "blob": {"allowed_containers": ["https://weather.blob.core.windows.net/data"]},
    "geocatalog": {"allowed": ["https://earth.geocatalog.example"]},
}


def test_azure_deployments_are_built_only_with_allowed_destinations() -> None:
    for settings, expected in (
        ({}, set()),
        ({"blob": {"signed_url_s": 60.0}}, set()),
        ({"blob": AZURE["blob"]}, {"BlobUploader"}),
        ({"geocatalog": AZURE["geocatalog"]}, {"GeoCatalog"}),
        (AZURE, {"BlobUploader", "GeoCatalog"}),
    ):
        built = build_app(build({"azure": settings}), name="earth2serve")
        names = {deployment.name for deployment in built.deployments}
        assert names & {"BlobUploader", "GeoCatalog"} == expected


def test_deployment_names_are_those_that_are_built() -> None:
    built = build_app(build({"azure": AZURE}), name="earth2serve")
    assert sorted(deployment.name for deployment in built.deployments) == sorted(DEPLOYMENTS)


FULL = {
    "http_options": {"port": 8000},
    "grpc_options": {"port": 9000},
    "logging_config": {"log_level": "INFO"},
    "applications": [
        {
            "name": "a",
            "import_path": "serve_app.app:build",
            "route_prefix": "/",
            "runtime_env": {"env_vars": {"A": "b"}},
            "args": {
                "queue": {"max_size": 3},
                "models": {"fcn3": {"options": {}}},
                "workflows": {
                    "custom": [{"class": "a:B", "name": "b", "config": {"c": 1}}],
                    "exposed": ["b"],
                },
            },
            "deployments": [
                {
                    "name": "FCN3",
                    "ray_actor_options": {"num_gpus": 1, "runtime_env": {}},
                    "autoscaling_config": {"min_replicas": 1},
                }
            ],
        }
    ],
}


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def test_no_value_makes_the_check_itself_fail(tmp_path: Path) -> None:
    assert check(tmp_path, yaml.safe_dump(FULL)) == []
    strange = [None, True, -1, 1.5, float("nan"), "x", "", [], [1], [[]], {}, {"x": 1}, {1: {}}]
    for path in _places(FULL):
        for value in strange:
            values = copy.deepcopy(FULL)
            inner: Any = values
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            for finding in check(tmp_path, yaml.safe_dump(values)):
                assert finding.split(":")[0].isdigit()


def test_the_command_reports_problems(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("x: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.check", "bad.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("bad.yaml:1: ")
    assert done.stderr == ""


def test_modules_that_are_not_found_here_cause_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        APPLICATION
        + "    args:\n"
        + "      models: {fcn3: {loader: 'no_such_package.models:load'}}\n"
        + "      data_sources:\n"
        + "        ifs: {loader: 'deployments.loaders:ifs'}\n"
        + "        goes: {loader: 'xarray.no_such_module:load'}\n"
        + "      workflows: {custom: [{class: 'no_such_package:Storms'}]}\n"
        + "      azure: {credential: {loader: 'no_such_package:credential'}}\n"
    )
    assert main([str(file)]) == 0
    rest = "here; the replicas that use it must find it"
    args = "warning: applications[0].args"
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"{file}: ok",
        f"{file}:10: {args}.data_sources.goes.loader: there is no module "
        f"xarray.no_such_module {rest}",
        f"{file}:11: {args}.workflows.custom[0].class: there is no module no_such_package {rest}",
        f"{file}:12: {args}.azure.credential.loader: there is no module no_such_package {rest}",
        f"{file}:7: {args}.models.fcn3.loader: there is no module no_such_package.models {rest}",
    ]


def test_memory_may_be_requested_in_bytes(tmp_path: Path) -> None:
    text = "    deployments: [{name: FCN3, ray_actor_options: {memory: 64000000000}}]\n"
    assert check(tmp_path, APPLICATION + text) == []


# Custom workflows.

CUSTOM = """\
    args:
      workflows:
        custom:
          - class: no_such_module.workflows:Storms
            name: storms
            config: {anything: [goes, {here: 1}]}
          - class: no_such_module.workflows:Rain
        exposed: [storms, foundry_fcn3_workflow]
        warmup: [Rain]
"""


def test_custom_workflows_and_their_deployments_are_valid(tmp_path: Path) -> None:
    text = (
        APPLICATION
        + CUSTOM
        + (
            "    deployments:\n"
            "      - {name: CustomWorkflow-storms, ray_actor_options: {num_gpus: 0.5}}\n"
            "      - {name: CustomWorkflow-Rain, num_replicas: 2}\n"
        )
    )
    assert check(tmp_path, text) == []


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("name: storms", "nam: storms", "10: applications[0].args.workflows.custom[0].nam: "),
        (
            "Rain\n",
            "Rain\n            replicas: 0\n",
            "13: applications[0].args.workflows.custom[1]",
        ),
        ("- class: no_such_module.workflows:Rain", "- name: Rain", "12: applications[0].args.wor"),
        (
            "class: no_such_module.workflows:Rain",
            "class: Rain",
            '12: applications[0].args.workflows.custom[1].class: must be "module:Class"',
        ),
        (
            "name: storms",
            "name: Rain",
            "8: applications[0].args.workflows.custom: no_such_module.workflows:Rain: a workflow",
        ),
        (
            "name: storms",
            "name: foundry_fcn3_workflow",
            "8: applications[0].args.workflows.custom: no_such_module.workflows:Storms: a workflow",
        ),
        (
            "exposed: [storms",
            "exposed: [stroms",
            "13: applications[0].args.workflows.exposed[0]: unknown workflow 'stroms'; known are "
            "foundry_fcn3_workflow, foundry_fcn3_stormscope_goes_workflow, storms, Rain",
        ),
        (
            "warmup: [Rain]",
            "warmup: [rain]",
            "14: applications[0].args.workflows.warmup[0]: unknown workflow 'rain'",
        ),
    ],
)
def test_problems_of_custom_workflows_are_reported_with_their_lines(
    tmp_path: Path, old: str, new: str, finding: str
) -> None:
    # Only one: names of workflows and deployments are not checked while a workflow is invalid.
    deployments = "    deployments:\n      - {name: CustomWorkflow-storms, num_replicas: 2}\n"
    assert CUSTOM.count(old) == 1
    (found,) = check(tmp_path, APPLICATION + CUSTOM.replace(old, new) + deployments)
    assert found.startswith(finding)


def test_a_deployment_of_an_unknown_workflow_is_reported(tmp_path: Path) -> None:
    deployments = (
        "    deployments:\n      - name: CustomWorkflow-Storms\n      - name: CustomWorkflow\n"
    )
    first, second = check(tmp_path, APPLICATION + CUSTOM + deployments)
    assert first.startswith(
        "16: applications[0].deployments[0].name: unknown deployment 'CustomWorkflow-Storms'; "
    )
    assert first.endswith("GeoCatalog, CustomWorkflow-storms, CustomWorkflow-Rain")
    assert second.startswith("17: applications[0].deployments[1].name: unknown deployment")


def test_other_deployments_are_checked_while_a_custom_workflow_is_invalid(tmp_path: Path) -> None:
    invalid = CUSTOM.replace("name: storms", "name: a/b")
    deployments = "    deployments:\n      - {name: Fcn3}\n      - {name: CustomWorkflow-a}\n"
    first, second = check(tmp_path, APPLICATION + invalid + deployments)
    assert first.startswith("10: applications[0].args.workflows.custom[0].name: 'a/b' cannot name")
    assert second.startswith("16: applications[0].deployments[0].name: unknown deployment 'Fcn3'")


def test_deployments_of_custom_workflows_have_the_names_that_the_check_accepts() -> None:
    args = {
        "azure": AZURE,
        "workflows": {"custom": [{"class": "no_such_module:Storms", "name": "storms"}]},
    }
    built = build_app(build(args), name="earth2serve")
    assert sorted(deployment.name for deployment in built.deployments) == sorted(
        (*DEPLOYMENTS, "CustomWorkflow-storms")
    )
