from pathlib import Path
from typing import Any

import yaml

from examples import demo
from serve_app.check import check_file
from workflows import WORKFLOWS


def test_the_workflow_accepts_the_request() -> None:
    workflow: Any = WORKFLOWS[demo.WORKFLOW]
    plan = workflow().plan(workflow().validate(demo.PARAMETERS))
    assert (len(plan.seeds), plan.n_times, plan.output_format) == (4, 9, "zarr")


def test_the_configuration_differs_only_in_its_folder(tmp_path: Path) -> None:
    original = demo.CONFIG.read_text()
    file = tmp_path / "demo.yaml"
    file.write_text(demo.with_data_dir(original, tmp_path / "da ta"))
    assert check_file(str(file)) == []
    written, expected = yaml.safe_load(file.read_text()), yaml.safe_load(original)
    assert written["applications"][0]["args"].pop("data_dir") == str(tmp_path / "da ta")
    expected["applications"][0]["args"].pop("data_dir")
    assert written == expected


def test_dataset_and_map_are_found_in_the_manifest() -> None:
    files = ["zarr.json", "t2m/zarr.json", "t2m/c/0/0/0/0"]
    paths = [f"exec_1/results.zarr/{name}" for name in files]
    paths += ["exec_1/checksums.sha256", "exec_1/preview.png"]
    manifest = {"output_files": [{"path": path} for path in paths]}
    assert demo.result_paths(manifest, Path("/results")) == (
        Path("/results/exec_1/results.zarr"),
        Path("/results/exec_1/preview.png"),
    )
