"""DBOS's connections to PostgreSQL."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from dbos._utils import retriable_postgres_exception

from deployments.conductor.dbos_setup import IDLE_IN_TRANSACTION_MS, postgres_engine


@pytest.mark.parametrize(
    "address",
    [
        "postgres@/postgres?host=/tmp/nobody-listens-here",
        "postgres@nobody.invalid/postgres",
        "postgres@127.0.0.1:1/postgres",
    ],
)
def test_dbos_waits_for_a_database_that_cannot_be_reached(address: str) -> None:
    engine = postgres_engine(f"postgresql+psycopg://{address}")
    with pytest.raises(sa.exc.OperationalError) as refused:
        engine.connect()
    assert retriable_postgres_exception(refused.value)


def test_idle_sessions_release_their_locks(postgres_database: str) -> None:
    engine = postgres_engine(postgres_database)
    with engine.connect() as connection:
        limit = connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout"))
    engine.dispose()
    assert limit == f"{IDLE_IN_TRANSACTION_MS // 60_000}min"
