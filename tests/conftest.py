"""Fixtures of the session, and how its tests are divided among workers."""

import os
from collections.abc import Generator, Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa

from serve_app import ports
from serve_app.__main__ import ENVIRONMENT
from tests.emulators.azurite import azurite
from tests.models import standin_modules
from tests.postgres import PostgresServer

__all__ = ["azurite"]

MAY_BE_SKIPPED_IN_CI = {"gpu", "privileged"}
"""Markers of what a machine may lack. Everything else that a test needs is installed in CI."""

# Ray reads these when it is imported. HAProxy would listen on two fixed ports, which a server on
# this machine may use. Without an authentication mode Ray writes a token to the home folder.
# Metrics are reported every 10 s by default.
os.environ |= ENVIRONMENT | {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_metrics_report_interval_ms": "2000",
}

# Before any test imports Earth2Studio's models, which look for these modules once.
standin_modules.register()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pytest-xdist run each file in one worker: tests of a file share servers."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Shorten the ids of long values: workers exchange them, and each is put in the environment."""
    if isinstance(val, str | bytes) and len(val) > 80:
        return f"{argname}-{len(val)}"
    return None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail if pytest-xdist ignores the groups, as it does with releases that it predates."""
    if "PYTEST_XDIST_WORKER" in os.environ and session.config.getvalue("loadgroup"):
        assert all("@" in item.nodeid for item in session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail tests that are skipped in CI for any reason but missing hardware or privileges."""
    report = yield
    if (
        os.environ.get("CI") == "true"
        and report.skipped
        and not hasattr(report, "wasxfail")
        and MAY_BE_SKIPPED_IN_CI.isdisjoint(mark.name for mark in item.iter_markers())
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {call.excinfo and call.excinfo.value}"
    return report


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of an empty PostgreSQL server for all tests."""
    try:
        server = PostgresServer()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with server:
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
def http_port() -> Iterator[int]:
    """Port of Serve on 127.0.0.1, on one Ray cluster; applications have route prefixes."""
    import ray
    from ray import serve

    ray.init("local", num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False)
    port = ports.free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def free_port() -> int:
    """Port on 127.0.0.1 on which nothing listens."""
    return ports.free_port()
