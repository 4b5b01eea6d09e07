"""What many tests share: a private PostgreSQL server and one Ray cluster, both for the session."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
import sqlalchemy as sa

from serve_app import ports
from serve_app.__main__ import ENVIRONMENT
from tests.emulators.azurite import azurite
from tests.models import standin_modules
from tests.postgres import PostgresServer

__all__ = ["azurite"]

# Read by Ray when it is imported. Without HAProxy: it listens on two ports of its own, which a
# server on this machine may have. Without tokens: left unset, Ray writes one to the home folder.
os.environ.update(ENVIRONMENT | {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_AUTH_MODE": "disabled"})

# Whichever test imports Earth2Studio's models first: they look once.
standin_modules.register()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of an empty PostgreSQL server for all tests."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(PostgresServer())
        except FileNotFoundError as missing:
            if os.environ.get("CI") == "true":
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        yield server.url


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
    return ports.free_port()


@pytest.fixture(scope="session")
def http_port(ray_cluster: None) -> int:
    """Port on 127.0.0.1 at which Serve answers; applications lie below it by route."""
    from ray import serve

    port = ports.free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    return port
