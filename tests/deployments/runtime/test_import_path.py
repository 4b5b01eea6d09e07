"""Loading models and data sources by import path."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.runtime.import_path import LoaderOptions, load, origin_of


class Thing:
    def __init__(self, **options: Any) -> None:
        self.options = options

    @classmethod
    def opened(cls, **options: Any) -> Thing:
        return cls(opened=True, **options)


def loader_options(loader: str, **options: Any) -> LoaderOptions:
    return LoaderOptions(name="thing", loader=loader, options=options)


def test_calls_the_loader_with_its_options() -> None:
    thing = load(loader_options(f"{__name__}:Thing", a=1), device="cpu")
    assert thing.options == {"a": 1, "device": "cpu"}


def test_a_path_may_lead_to_a_method() -> None:
    thing = load(loader_options(f"{__name__}:Thing.opened", a=1))
    assert thing.options == {"opened": True, "a": 1}


@pytest.mark.parametrize(
    ("loader", "error"),
    [("no_such_module:load", ModuleNotFoundError), (f"{__name__}:missing", AttributeError)],
)
def test_a_path_that_does_not_exist_is_named(loader: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="no_such_module|missing"):
        load(loader_options(loader))


def test_a_model_is_real_unless_it_is_marked_as_synthetic() -> None:
    origin = origin_of(Thing(), loader_options("a:b", package="/weights/fcn3"))
    assert origin.synthetic is False
    assert origin.weights == "/weights/fcn3"
