"""``python -m serve_app``: checks the file, serves on the requested port, stops on SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from serve_app.ports import free_port

ROOT = Path(__file__).parents[2]

APPLICATION = """\
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Hello:
    def __call__(self, request):
        return "hello"

app = Hello.bind()
"""

CONFIG = """\
http_options: {host: 127.0.0.1, port: 1}
applications:
  - {name: hello, import_path: hello:app, route_prefix: /}
"""


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "serve_app", *arguments],
        cwd=folder,
        # HAProxy's metrics port is fixed, so only one server per machine can use HAProxy.
        env={
            **{name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"},
            "PYTHONPATH": f"{ROOT}:{folder}",
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_an_invalid_file_is_refused_at_startup(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(CONFIG + "queue: 1\n")
    process = start(tmp_path, "bad.yaml")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.decode().splitlines() == [
        "bad.yaml:4: queue: unknown key; it belongs in applications[].args"
    ]


def test_an_invalid_environment_is_refused_at_startup(tmp_path: Path) -> None:
    config = str(ROOT / "config" / "local.yaml")
    process = start(tmp_path, config, EXPOSED_WORKFLOWS="fcn4")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "EXPOSED_WORKFLOWS: unknown workflow 'fcn4'" in output.decode()


def test_a_port_in_use_is_refused_at_startup(tmp_path: Path) -> None:
    config = str(ROOT / "config" / "local.yaml")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        output, _ = start(tmp_path, config, "--port", str(port)).communicate(timeout=60)
    assert output.decode().splitlines() == [
        f"{config}: ok",
        f"port {port} is in use; choose another with PORT=… or --port",
    ]


def test_serve_ends_with_an_error_unless_it_is_interrupted() -> None:
    # In a process of its own, whose signal handlers it may set.
    code = (
        "import os, signal, sys\n"
        "from serve_app.__main__ import run_until_interrupted\n"
        "def interrupted():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit()\n"
        "print(run_until_interrupted(sys.exit), run_until_interrupted(interrupted))\n"
        "run_until_interrupted(lambda: sys.exit(3))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("1 0\n", 3)


@pytest.mark.ray
@pytest.mark.slow
def test_the_server_runs_on_the_port_until_terminated(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(APPLICATION)
    (tmp_path / "hello.yaml").write_text(CONFIG)
    port = free_port()
    process = start(tmp_path, "hello.yaml", "--port", str(port))
    try:
        deadline = time.monotonic() + 120
        answer = b""
        while answer != b"hello" and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.3)
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            except urllib.error.HTTPError as error:
                # Serve's own proxy answers 404 until it knows the route.
                assert error.code == 503 and error.headers["Retry-After"]
            except OSError:
                continue
        assert answer == b"hello"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output.decode()
        assert "Traceback" not in output.decode()
        assert "token for Ray's dashboard: " in output.decode()
        assert f"ready: http://127.0.0.1:{port}" in output.decode()
    finally:
        process.kill()
        process.wait()
