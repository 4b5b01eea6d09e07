"""What many tests share: a private PostgreSQL server and one Ray cluster, both for the session."""

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from serve_app import apart
from serve_app.__main__ import ENVIRONMENT
from tests.emulators.azurite import azurite
from tests.models import standin_modules

__all__ = ["azurite"]

# Read by Ray when it is imported. Without HAProxy: it listens on two ports of its own, which a
# server on this machine may have. Without tokens: left unset, Ray writes one to the home folder.
os.environ.update(ENVIRONMENT | {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_AUTH_MODE": "disabled"})

# Whichever test imports Earth2Studio's models first: they look once.
standin_modules.register()


@contextmanager
def postgres_server(*options: str) -> Iterator[str]:
    """Give the URL of an empty PostgreSQL server of our own, reached by a socket.

    Parameters
    ----------
    options : str
        For ``initdb``, such as ``--auth``; without them nobody is asked for a password.
    """
    # Newest first; the ones on the PATH may be wrappers that serve another purpose.
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"), reverse=True)
    control = found[0] if found else shutil.which("pg_ctl")
    if control is None:
        raise FileNotFoundError(
            "PostgreSQL's pg_ctl is neither in /usr/lib/postgresql nor on the PATH"
        )
    # Not pytest's own folder: only root may enter that, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="e2s-pg-", dir="/tmp"))
    # PostgreSQL refuses to run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if not os.getuid() else {}
    if user:
        shutil.chown(folder, "postgres", "postgres")

    def run(*command: str) -> None:
        log = folder / "command.log"
        with log.open("w") as output:
            # Into a file, since the server would keep a pipe open.
            done = subprocess.run(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, **user
            )
        assert done.returncode == 0, log.read_text()

    data = ["-D", f"{folder}/data"]
    how = " ".join(options) or "--auth=trust"
    run(control, "init", *data, "-s", "-o", f"--username=postgres --no-sync {how}")
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    run(control, "start", "-w", *data, "-l", f"{folder}/server.log", "-o", settings)
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        run(control, "stop", *data, "-m", "immediate")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of an empty PostgreSQL server for all tests."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres_server())
        except FileNotFoundError as missing:
            if os.environ.get("CI") == "true":
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of an empty database for one test."""
    name = f"test_{uuid4().hex}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """One Ray for all tests; indirect parameters, such as num_gpus=2, go to `ray.init`."""
    import ray
    from ray import serve

    options = {"num_cpus": 8, "num_gpus": 0, "include_dashboard": False, "log_to_driver": False}
    ray.init("local", **{**options, **getattr(request, "param", {})})
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def free_port() -> int:
    """Port on 127.0.0.1 that nobody listens on."""
    return apart.free_port()


@pytest.fixture(scope="session")
def http_port(ray_cluster: None) -> int:
    """Port on 127.0.0.1 at which Serve answers; applications lie below it by route."""
    from ray import serve

    port = apart.free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    return port
