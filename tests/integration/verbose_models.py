"""A model and a data source that write messages as libraries do; the model fails at step 3."""

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

MESSAGES = {"uses logging", "uses loguru", "prints", "at 100 %", "logs from a thread"}
"""Ends of the messages, without the warning, whose line also contains its position."""


def write_messages(source: str) -> None:
    """Write one message in each of the ways in which libraries do."""
    library.warning("%s uses logging", source)
    loguru.info("{} uses loguru", source)
    print(source, "prints")
    sys.stderr.write(f"{source} at 10 %\r{source} at 100 %\n")
    warnings.warn(f"{source} uses warnings", stacklevel=1)
    thread = threading.Thread(target=library.warning, args=("%s logs from a thread", source))
    thread.start()
    thread.join()


class Model(SyntheticFCN3):
    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        for index, step in enumerate(super().create_iterator(x, coords)):
            if index == 2:
                write_messages("the model")
            if index == 3:
                raise RuntimeError("the model breaks")
            yield step


class Source(SyntheticIFS):
    def __call__(self, time: Any, variable: Any) -> Any:
        write_messages("the source")
        return super().__call__(time, variable)


def load_model(device: str, **options: Any) -> Model:
    return Model(device, **options)


def load_source(**options: Any) -> Source:
    return Source(**options)
