"""The database's password is read from a file named in `args.store_url`: libpq's `passfile`."""

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
    """URL, without the password, of a server that requires one."""
    # PostgreSQL's user must read it, and only root can enter pytest's own folder.
    password = Path(f"/tmp/e2s-password-{os.getpid()}")
    try:
        server = PostgresServer("--auth=scram-sha-256", f"--pwfile={password}")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with ExitStack() as stack:
        password.write_text(PASSWORD)
        password.chmod(0o644)
        stack.callback(password.unlink)
        yield sa.make_url(stack.enter_context(server).url)


def store_url(server: sa.URL, folder: Path, mode: int = 0o600) -> str:
    """Write the file; return a URL as an operator writes it."""
    passfile = folder / "pgpass"
    passfile.write_text(f"*:*:*:*:{PASSWORD}\n")
    passfile.chmod(mode)
    written = server.update_query_dict({"passfile": str(passfile)})
    settings = parse_settings({"store_url": written.render_as_string(hide_password=False)}, {})
    assert PASSWORD not in settings.model_dump_json() + settings.resolved_store_url
    return settings.resolved_store_url


def test_store_lease_and_dbos_use_the_file(server: sa.URL, tmp_path: Path) -> None:
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


def test_a_file_that_others_can_read_is_refused(server: sa.URL, tmp_path: Path) -> None:
    """A Secret's file is; therefore components/cloud/store-password.yaml copies it."""
    with pytest.raises(sa.exc.OperationalError, match="no password supplied") as failure:
        ExecutionStore(store_url(server, tmp_path, 0o640))
    assert PASSWORD not in str(failure.value)
