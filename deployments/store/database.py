"""Opens the store's database, SQLite or PostgreSQL, and writes to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deployments.store.schema import create_tables

LOCK_WAIT_S = 30.0
_POSTGRES_WRITE_LOCK = 0x6561727468327376  # "earth2sv"


class Database:
    """A database with the store's tables.

    Parameters
    ----------
    url : str
        ``sqlite:///path`` or ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str) -> None:
        self.engine = _open_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # Threads that find SQLite's lock taken sleep for up to 0.1 s; with this lock they only wait
        # for each other.
        self._write_lock: AbstractContextManager[Any] = (
            threading.Lock() if self.is_sqlite else nullcontext()
        )
        with self.writing() as connection:
            create_tables(connection)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that holds the write lock from its first statement.

        SQLite's write lock comes with BEGIN IMMEDIATE, PostgreSQL's is an advisory lock. Thus a
        count and an insert are atomic across processes.
        """
        with self._write_lock, self.engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(
                        sa.select(sa.func.pg_advisory_xact_lock(_POSTGRES_WRITE_LOCK))
                    )
                yield connection


def upsert(connection: sa.Connection, table: sa.Table, key: str, **values: Any) -> None:
    """Insert a row, or update the one with the same `key`."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    update = {name: value for name, value in values.items() if name != key}
    connection.execute(
        insert(table).values(**values).on_conflict_do_update(index_elements=[key], set_=update)
    )


def _open_engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_size=8, max_overflow=8, pool_pre_ping=True)
    database = sa.make_url(url).database
    if database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        pool_size=8,
        max_overflow=8,
        # The driver's own transaction control would start a transaction only at the first write.
        connect_args={"timeout": LOCK_WAIT_S, "isolation_level": None, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # WAL: readers never wait for the writer. FULL: an accepted execution survives a power cut.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT_S * 1000)}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # BEGIN IMMEDIATE takes the write lock at once: otherwise another transaction could write
        # between the count and the insert of this one.
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
