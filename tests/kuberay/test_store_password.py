"""The database's password comes from a file that `args.store_url` names: `passfile` of libpq."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from dbos import DBOS

from deployments.conductor.lease import PostgresLease
from deployments.store.executions import ExecutionStore
from serve_app.settings.parsing import parse_settings
from tests.postgres import PostgresServer

PASSWORD = "not-in-the-configuration"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """URL of a server that asks for a password, which the URL does not have."""
    # PostgreSQL's user reads it, and only root enters pytest's own folder.
    given = Path(f"/tmp/e2s-password-{os.getpid()}")
    try:
        server = PostgresServer("--auth=scram-sha-256", f"--pwfile={given}")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with ExitStack() as stack:
        given.write_text(PASSWORD)
        given.chmod(0o644)
        stack.callback(given.unlink)
        yield sa.make_url(stack.enter_context(server).url)


def store_url(server: sa.URL, folder: Path, mode: int = 0o600) -> str:
    """Give a URL as an operator writes it, and the file beside it."""
    passfile = folder / "pgpass"
    passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
    passfile.chmod(mode)
    written = server.update_query_dict({"passfile": str(passfile)})
    settings = parse_settings({"store_url": written.render_as_string(hide_password=False)}, {})
    assert PASSWORD not in settings.model_dump_json() + settings.resolved_store_url
    return settings.resolved_store_url


def test_store_lease_and_dbos_take_it_from_there(server: sa.URL, tmp_path: Path) -> None:
    url = store_url(server, tmp_path)
    store = ExecutionStore(url)
    assert store.count_by_status() == {}
    lease = PostgresLease(store.engine)
    assert lease.try_acquire() and lease.held()
    lease.release()
    store.close()
    DBOS(
        config={
            "name": "earth2serve",
            "system_database_url": url,
            "log_level": "WARNING",
            "use_listen_notify": False,
        }
    )
    try:
        DBOS.launch()
        assert DBOS.list_workflows() == []
    finally:
        DBOS.destroy()


def test_a_file_that_others_may_read_is_refused(server: sa.URL, tmp_path: Path) -> None:
    """Hence the copy in components/cloud/store-password.yaml: a Secret's file is readable so."""
    with pytest.raises(sa.exc.OperationalError, match="no password supplied") as failure:
        ExecutionStore(store_url(server, tmp_path, 0o640))
    assert PASSWORD not in str(failure.value)
