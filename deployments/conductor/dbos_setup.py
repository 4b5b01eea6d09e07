"""The database of DBOS, which records the steps of executions: the execution store's own.

On SQLite it is a file beside the store's: its commits and ours do not wait for each other.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
import sqlalchemy as sa

POOL_SIZE, POOL_TIMEOUT_S, CONNECT_TIMEOUT_S = 20, 30, 10
IDLE_IN_TRANSACTION_MS = 60_000
"""All four as DBOS has them for an engine that it makes by itself; the last is when PostgreSQL ends
a session that does nothing, and gives back its locks."""


def sqlite_url(store_url: str) -> str:
    """Give the URL of the file beside the store's, which is there then."""
    path = f"{sa.make_url(store_url).database}.dbos"
    # DBOS leaves the journal mode as it finds it, and WAL stays with the file.
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return f"sqlite:///{path}"


def postgres_engine(store_url: str) -> sa.Engine:
    """Open the store's database for DBOS."""
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
    """Connect; whatever is in the way reads as DBOS expects.

    DBOS waits for a database that is away, and knows that by psycopg's words. A name that is not
    resolved for a moment, or a socket that is not there, has others: the step would count as
    failed, and a forecast of hours with it.
    """
    try:
        return dialect.connect(*arguments, **named)
    except psycopg.OperationalError as error:
        raise psycopg.OperationalError(f"connection failed: {error}") from error


def _prepare(connection: psycopg.Connection[Any], _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS:d}")
    # The pool rolls back what it gets back.
    connection.commit()
