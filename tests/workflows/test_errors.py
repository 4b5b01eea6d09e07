"""Errors cross process boundaries by pickle, with their own arguments and nothing else."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from workflows.errors import (
    Earth2ServeError,
    ExecutionNotFound,
    InvalidParameters,
    ModelUnavailable,
    Problem,
    QueueFull,
    StageFailed,
    StaleConductor,
    StorageFull,
    WorkflowUnavailable,
)

PROGRAM = """
import pickle
import tblib.pickling_support
from workflows import errors

tblib.pickling_support.install()  # as Dask does, which Earth2Studio imports

def fail(depth):
    if depth:
        try:
            fail(depth - 1)
        except errors.StageFailed as error:
            raise errors.UploadFailed("upload", f"{depth}") from error
    raise errors.StageFailed("inference", "the core returned NaN")

try:
    fail(100)
except errors.StageFailed as raised:
    pickled = pickle.dumps(raised)
found = pickle.loads(pickled)
print(type(found).__name__, found.stage, found.reason, len(pickled) < 300, found.__cause__)
"""


@pytest.mark.parametrize(
    "error",
    [
        InvalidParameters([Problem("parameters.n_steps", "too many")]),
        QueueFull(20, 20),
        StorageFull(5, 4, 3),
        StaleConductor(1, 2),
        ExecutionNotFound("exec_1_00000000"),
        WorkflowUnavailable("storms", "is not ready"),
        StageFailed("package", "a step is missing"),
        ModelUnavailable("inference", "no weights"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: Earth2ServeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_pickles_by_its_arguments_even_with_tblib_installed() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["UploadFailed", "upload", "100", "True", "None"], done.stderr
