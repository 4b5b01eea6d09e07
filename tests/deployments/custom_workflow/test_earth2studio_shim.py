"""Importing Earth2Studio's server does not change the process."""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deployments.custom_workflow.earth2studio_shim import FOLDERS, isolate_import

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the variables that `isolate_import` sets permanently."""
    for name in (*FOLDERS, "EARTH2STUDIO_API_ACTIVE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


IMPORT = """\
import logging, os, sys
created = []
sys.addaudithook(lambda event, args: created.append(args[0]) if event == "os.mkdir" else None)
root, handler = logging.getLogger(), logging.FileHandler("log", "w")
root.addHandler(handler)
root.setLevel(logging.ERROR)

import json
from pathlib import Path
from deployments.custom_workflow.earth2studio_shim import isolate_import
from deployments.runtime.log_context import bridge_loguru

with isolate_import(Path("scratch").absolute()):
    from earth2studio.serve.server import Earth2Workflow, WorkflowRegistry

unchanged = root.handlers == [handler] and root.level == logging.ERROR
logging.getLogger("users").error("still written")

class Storms(Earth2Workflow):
    def __init__(self): super().__init__()
    def __call__(self, io): pass

Storms()  # creates its output folder again
WorkflowRegistry.instance().register(Storms)
print(json.dumps({
    "user": os.getuid(),
    "created": [str(Path(os.fsdecode(path)).absolute()) for path in created],
    "unchanged": unchanged,
    "registered": WorkflowRegistry.instance().list_workflows(),
}))
"""


def as_nobody() -> list[str]:
    """Return a command prefix that runs as a user who may read everything and write nothing.

    The user must read everything because the interpreter may lie in root's home.
    """
    if os.getuid():
        return []  # already an unprivileged user
    command = shutil.which("setpriv")
    if command is None:
        pytest.skip("setpriv is missing, so root cannot change the user")
    try:
        group = pwd.getpwnam("nobody").pw_gid
    except KeyError:
        pytest.skip("the user nobody does not exist")
    read_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    become = [command, "--reuid=nobody", f"--regid={group}", "--clear-groups", *read_all]
    if subprocess.run([*become, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("root cannot become nobody here")
    return become


@pytest.mark.models
@pytest.mark.parametrize("user", ["self", pytest.param("nobody", marks=pytest.mark.privileged)])
def test_importing_earth2studios_server_does_not_change_the_process(user: str) -> None:
    become = as_nobody() if user == "nobody" else []
    # Not pytest's own folder, which only root may enter.
    folder = Path(tempfile.mkdtemp(prefix="e2s-import-"))
    try:
        if become:
            shutil.chown(folder, "nobody")
        done = subprocess.run(
            [*become, sys.executable, "-c", IMPORT],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "DEFAULT_OUTPUT_DIR": str(folder / "named"),
                "EARTH2STUDIO_API_ACTIVE": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert not become or found["user"] == pwd.getpwnam("nobody").pw_uid
        # The audit hook also reports an attempt to create an existing /outputs.
        assert set(found["created"]) == {str(folder / "scratch")}
        assert sorted(path.name for path in folder.iterdir()) == ["log", "scratch"]
        assert found["unchanged"]
        assert "still written" in (folder / "log").read_text()
        assert found["registered"] == {}
        assert "Hydra" not in done.stderr
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("fails", [False, True])
def test_logging_is_restored_after_an_import(tmp_path: Path, fails: bool) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    try:
        with isolate_import(tmp_path / "deep" / "scratch"):
            logging.basicConfig(handlers=[logging.NullHandler()], level=1, force=True)
            if fails:
                raise ImportError
    except ImportError:
        assert fails
    assert (root.handlers, root.level) == before
    assert {os.environ[name] for name in FOLDERS} == {str(tmp_path / "deep" / "scratch")}
