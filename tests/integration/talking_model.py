"""A model and a data source that talk as libraries do, and a model that fails after two steps."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from loguru import logger as loguru

from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS

library = logging.getLogger("some.library")


def talk(who: str) -> None:
    """Say something in every way that there is."""
    library.warning("%s warns by logging", who)
    loguru.info("{} tells loguru", who)
    print(who, "prints")
    sys.stderr.write(f"{who} at 10 %\r{who} at 100 %\n")
    warnings.warn(f"{who} warns of itself", stacklevel=1)
    thread = threading.Thread(target=library.warning, args=("%s warns from a thread", who))
    thread.start()
    thread.join()


class Model(SyntheticFCN3):
    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        for index, step in enumerate(super().create_iterator(x, coords)):
            if index == 2:
                talk("the model")
            if index == 3:
                raise RuntimeError("the model breaks")
            yield step


class Source(SyntheticIFS):
    def __call__(self, time: Any, variable: Any) -> Any:
        talk("the source")
        return super().__call__(time, variable)


def load_model(device: str, **options: Any) -> Model:
    return Model(device, **options)


def load_source(**options: Any) -> Source:
    return Source(**options)
