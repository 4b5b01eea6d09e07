"""The Dockerfile agrees with the rest of the project; no image is built."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

from serve_app.check import check_file
from tests.kuberay.rendering import IN_IMAGE

ROOT = Path(__file__).parents[2]
FINAL = ("cpu", "gpu")


@dataclass
class Stage:
    """The instructions of one stage."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """Return the arguments of every such instruction, in order."""
        return [words for name, words in self.instructions if name == instruction]


def _read() -> tuple[dict[str, str], dict[str, Stage]]:
    """Return the arguments before the first FROM, and the stages by name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, words = line.partition(" ")
        if name == "FROM":
            base, _as, alias = words.split()
            stage = stages[alias] = Stage(alias, base)
        elif stage is None:
            assert name == "ARG"
            key, _, value = words.partition("=")
            arguments[key] = value
        else:
            stage.instructions.append((name, words))
    return arguments, stages


ARGUMENTS, STAGES = _read()


def lineage(target: str) -> list[Stage]:
    """Return the stages of a target, its base first."""
    stage = STAGES[target]
    return [*(lineage(stage.base) if stage.base in STAGES else []), stage]


def instructions(target: str, instruction: str) -> list[str]:
    return [words for stage in lineage(target) for words in stage.all(instruction)]


def environment(target: str) -> dict[str, str]:
    return dict(
        pair.split("=", 1) for words in instructions(target, "ENV") for pair in shlex.split(words)
    )


def test_the_base_has_the_pinned_release_of_ray() -> None:
    assert ARGUMENTS["RAY_VERSION"] == version("ray")
    bases = {stage.base for stage in STAGES.values()} - STAGES.keys()
    assert bases
    assert all(base.startswith("rayproject/ray:${RAY_VERSION}-${PYTHON}-") for base in bases)
    # A tag by default, and its digest where a build names it.
    assert {base.partition("$")[2].rpartition("$")[2] for base in bases} == {
        "{RAY_CPU_DIGEST}",
        "{RAY_GPU_DIGEST}",
    }
    assert ARGUMENTS["RAY_CPU_DIGEST"] == ARGUMENTS["RAY_GPU_DIGEST"] == ""


def test_models_have_the_documented_versions() -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    documented = set(re.findall(r"(?:\.git@|natten==)([0-9a-f]{40}|[\d.]+)", text))
    stage = STAGES["wheels"]
    arguments = dict(words.partition("=")[::2] for words in stage.all("ARG"))
    built = set(re.findall(r"(?:\.git@|natten==)\$\{(\w+)\}", " ".join(stage.all("RUN"))))
    assert built == {"TORCH_HARMONICS", "MAKANI", "EARTH2GRID", "NATTEN"}
    assert {arguments[name] for name in built} == documented


@pytest.mark.parametrize("target", FINAL)
def test_the_environment_is_set(target: str) -> None:
    variables = environment(target)
    assert variables.items() >= IN_IMAGE.items()
    # Git and COPY keep its mode.
    assert os.access(ROOT / "serve_app" / "haproxy" / "haproxy", os.X_OK)
    assert variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"
    # Authentication of Ray is configured where it is started.
    assert not [name for name in variables if name.startswith("RAY_AUTH")]


@pytest.mark.parametrize("target", FINAL)
def test_nothing_runs_as_root(target: str) -> None:
    assert instructions(target, "USER")[-1] == "1000:100"


@pytest.mark.parametrize("target", FINAL)
def test_it_contains_no_build_tools(target: str) -> None:
    # Ray's GPU image contains nvcc and g++, so it is not the base.
    assert lineage(target)[0].base.endswith("-cpu${RAY_CPU_DIGEST}")
    assert "wheels" not in [stage.name for stage in lineage(target)]
    assert not [words for words in instructions(target, "RUN") if "apt-get" in words]
    # Ray's CPU image contains none; the build checks that.
    assert [
        words for words in instructions(target, "RUN") if "if command -v g++ cmake nvcc" in words
    ]
    copied = [words.split()[-2:] for words in instructions(target, "COPY") if "--from" in words]
    assert copied == ([["/home/ray/wheels", "/tmp/wheels"]] if target == "gpu" else [])


@pytest.mark.parametrize("target", FINAL)
def test_it_serves_a_configuration_that_passes_the_check(target: str) -> None:
    config = Path(environment(target)["EARTH2SERVE_CONFIG"])
    assert check_file(str(ROOT / config)) == []
    copied = {words.split()[-2].split("/")[0] for words in instructions(target, "COPY")}
    assert {config.parts[0], "serve_app", "deployments", "workflows"} <= copied


@pytest.mark.parametrize("target", FINAL)
@pytest.mark.parametrize(
    ("named", "existing", "served"),
    [
        ("one.yaml", ["one.yaml"], "one.yaml"),
        ("one.yaml two.yaml", ["one.yaml", "two.yaml"], "one.yaml"),
        ("one.yaml two.yaml", ["two.yaml"], "two.yaml"),
        ("one.yaml two.yaml", [], "two.yaml"),  # the server reports that it is missing
    ],
)
def test_it_serves_the_first_existing_configuration(
    target: str, named: str, existing: list[str], served: str, tmp_path: Path
) -> None:
    for name in existing:
        (tmp_path / name).touch()
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        json.loads(instructions(target, "CMD")[-1]),
        cwd=tmp_path,
        env={"PATH": f"{stand_in.parent}:{os.defpath}", "EARTH2SERVE_CONFIG": named},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"-m serve_app {served}\n"


@pytest.mark.parametrize("target", FINAL)
def test_its_health_check_uses_a_route_without_a_token(target: str) -> None:
    (health,) = instructions(target, "HEALTHCHECK")
    assert "http://127.0.0.1:8000/liveness" in health
    assert instructions(target, "EXPOSE") == ["8000"]


def test_exactly_the_copied_files_are_sent_to_the_builder() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    sent = {line[1:] for line in rules if line.startswith("!") and "/" not in line}
    copied = {
        name
        for stage in STAGES.values()
        for words in stage.all("COPY")
        if "--from" not in words
        for name in [word for word in words.split() if not word.startswith("--")][:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)


def is_sent(path: str) -> bool:
    """Return whether a file is sent to the builder: the last rule that matches decides."""
    names = [path, *map(str, list(PurePosixPath(path).parents)[:-1])]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = re.escape(line.removeprefix("!"))
        rule = rule.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(rule, name) for name in names):
            sent = line.startswith("!")
    return sent


@pytest.mark.parametrize("name", ["fcn3/training_checkpoints/best.tar", "weights.mdlus"])
def test_weights_beside_the_configuration_for_azure_ml_are_ignored(name: str) -> None:
    folder = "config/azureml/model"
    assert is_sent(f"{folder}/serve.yaml") and not is_sent(f"{folder}/{name}")
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", f"{folder}/serve.yaml", f"{folder}/{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ignored.stdout.split() == [f"{folder}/{name}"]


def test_only_required_files_are_sent() -> None:
    assert is_sent("config/container.yaml") and is_sent("deployments/models/fcn3.py")
    assert is_sent("deployments/runtime/coastline.geojson")
    assert not is_sent("config/kuberay/base/network.yaml") and not is_sent("var/results/x.nc")
    assert not is_sent("deployments/__pycache__/fcn3.pyc")


def test_the_stages_above_the_cpu_target_compile_nothing() -> None:
    names = list(STAGES)
    assert names.index("cpu") < names.index("wheels") < names.index("gpu") == len(names) - 1
    assert not [w for s in STAGES.values() for w in s.all("RUN") if "--mount" in w]
