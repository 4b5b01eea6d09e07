"""The Ingress deployment, without Ray."""

import os
import subprocess
import sys

import pytest
from fastapi import FastAPI

from serve_app.http.deployment import Ingress
from serve_app.http.options import IngressOptions
from tests.serve_app.conftest import WORKFLOW


@pytest.mark.filterwarnings("ignore:coroutine.*__del__")  # only Serve awaits it
async def test_the_deployment_builds_the_application_and_hides_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    options = IngressOptions(
        store_url=f"sqlite:///{tmp_path}/store.db",
        storage={"results_dir": tmp_path, "work_dir": tmp_path},
        exposed=(WORKFLOW,),
    )
    assert Ingress.name == "Ingress"
    kind = Ingress.func_or_class
    replica = kind.__new__(kind)
    await replica.__init__(options, None, {})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert isinstance(replica.__serve_build_asgi_app__(), FastAPI)


def test_serve_never_makes_a_request_wait_for_those_that_are_held():
    # HAProxy, by default, accepts 4096 connections on each node.
    assert Ingress.max_ongoing_requests > 10 * 4096


def test_the_ingress_does_not_import_torch():
    code = "import sys, serve_app.http.deployment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
