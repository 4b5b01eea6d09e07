"""Launches DBOS, with its tables in the execution store's database.

On SQLite they are in a file beside the store's, so that its commits and ours do not wait for each
other.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import psycopg
import sqlalchemy as sa
from dbos import DBOS

from deployments.conductor.dbos_log import capture_dbos_log

EXECUTOR_ID = "conductor"
APPLICATION_VERSION = "3"
"""DBOS recovers only workflows of its own version. Its default is a hash of the code, so that any
edit would orphan what runs.

Recorded outcomes of steps are pickled by the path of their class: a release that moves or changes
one of these classes, or the order of the steps, needs the next version. So does one that writes
other metadata of datasets: only `create_result`, which a new attempt repeats, brings those of a
result that was begun up to date. In 2, the workflow became a method and the classes moved into the
folders of their deployments. In 3, the metadata of Zarr stores changed.
"""

POOL_SIZE, POOL_TIMEOUT_S, CONNECT_TIMEOUT_S = 20, 30, 10
IDLE_IN_TRANSACTION_MS = 60_000
"""The defaults of DBOS's own engine. After the last, PostgreSQL ends a session that is idle in a
transaction, which releases its locks."""


@asynccontextmanager
async def dbos_launched(store_url: str) -> AsyncIterator[None]:
    """Run DBOS on this event loop during the block; it recovers the workflows that are pending."""
    config: dict[str, Any] = {
        "name": "earth2serve",
        "application_version": APPLICATION_VERSION,
        "executor_id": EXECUTOR_ID,
        "log_level": "WARNING",
        "use_listen_notify": False,
    }
    engine: sa.Engine | None = None
    if store_url.startswith("sqlite"):
        config["system_database_url"] = sqlite_url(store_url)
    else:
        config["system_database_engine"] = engine = postgres_engine(store_url)
    capture_dbos_log()
    try:
        DBOS(config=config)  # type: ignore[arg-type]
        DBOS.launch()
        yield
    finally:
        await asyncio.to_thread(DBOS.destroy)
        if engine is not None:
            engine.dispose()


def sqlite_url(store_url: str) -> str:
    """Return the URL of DBOS's file beside the store's, and create that file."""
    path = f"{sa.make_url(store_url).database}.dbos"
    # DBOS does not set the journal mode, and WAL persists in the file.
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return f"sqlite:///{path}"


def postgres_engine(store_url: str) -> sa.Engine:
    """Return an engine on the store's database for DBOS."""
    engine = sa.create_engine(
        store_url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
    )
    sa.event.listen(engine, "do_connect", _connect)
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _connect(dialect: sa.Dialect, _record: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Connect, and rephrase every failure so that DBOS waits for the database.

    DBOS recognizes an outage by psycopg's message. A DNS failure or a missing socket has another
    message: the step would fail, and with it a forecast of hours.
    """
    try:
        return dialect.connect(*arguments, **named)
    except psycopg.OperationalError as error:
        raise psycopg.OperationalError(f"connection failed: {error}") from error


def _prepare(connection: psycopg.Connection[Any], _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS:d}")
    # The pool rolls back what is returned to it.
    connection.commit()
