"""Errors cross processes by pickle, with what they were given and nothing else."""

import subprocess
import sys

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


def test_an_error_pickles_by_its_arguments_whatever_was_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["UploadFailed", "upload", "100", "True", "None"], done.stderr
