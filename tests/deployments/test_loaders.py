"""Loading by import path, and FCN3 from a package folder with the real wrapper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployments import loaders
from deployments._loading import LoaderOptions, describe_origin, load
from workflows.fcn3 import VARIABLES


class Thing:
    def __init__(self, **options: Any) -> None:
        self.options = options

    @classmethod
    def opened(cls, **options: Any) -> Thing:
        return cls(opened=True, **options)


def what(loader: str, **options: Any) -> LoaderOptions:
    return LoaderOptions(name="thing", loader=loader, options=options)


def test_calls_what_the_path_names_with_its_options() -> None:
    made = load(what(f"{__name__}:Thing", a=1), device="cpu")
    assert made.options == {"a": 1, "device": "cpu"}


def test_a_path_may_go_through_a_class() -> None:
    assert load(what(f"{__name__}:Thing.opened", a=1)).options == {"opened": True, "a": 1}


@pytest.mark.parametrize(
    ("loader", "error"),
    [("no_such_module:load", ModuleNotFoundError), (f"{__name__}:missing", AttributeError)],
)
def test_a_path_that_leads_nowhere_says_so(loader: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="no_such_module|missing"):
        load(what(loader))


def test_what_is_not_said_to_be_synthetic_is_real() -> None:
    described = describe_origin(Thing(), what("a:b", package="/weights/fcn3"))
    assert described["synthetic"] is False
    assert described["weights"] == "/weights/fcn3"


def test_a_folder_without_weights_is_named_before_anything_is_imported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/none with FCN3's weights"):
        loaders.fcn3("cpu", package=f"{tmp_path}/none")


@pytest.mark.models
def test_fcn3_is_loaded_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"channel_names": VARIABLES}))
    model = loaders.fcn3("cpu", package=str(tmp_path))

    assert tuple(model.input_coords()["variable"]) == VARIABLES
    assert not model.training
    assert {str(parameter.device) for parameter in model.parameters()} == {"cpu"}
    assert describe_origin(model, what("deployments.loaders:fcn3"))["weights"] == str(tmp_path)


@pytest.mark.models
def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json"):
        loaders.fcn3("cpu", package=str(tmp_path))
