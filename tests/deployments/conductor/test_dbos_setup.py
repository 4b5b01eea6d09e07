"""DBOS's database, when it cannot be had."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from dbos._utils import retriable_postgres_exception

from deployments.conductor.dbos_setup import IDLE_IN_TRANSACTION_MS, postgres_engine


@pytest.mark.parametrize(
    "where",
    [
        "postgres@/postgres?host=/tmp/nobody-listens-here",
        "postgres@nobody.invalid/postgres",
        "postgres@127.0.0.1:1/postgres",
    ],
)
def test_whatever_keeps_dbos_from_it_is_waited_for(where: str) -> None:
    engine = postgres_engine(f"postgresql+psycopg://{where}")
    with pytest.raises(sa.exc.OperationalError) as refused:
        engine.connect()
    assert retriable_postgres_exception(refused.value)


def test_sessions_that_do_nothing_give_back_their_locks(postgres_database: str) -> None:
    engine = postgres_engine(postgres_database)
    with engine.connect() as connection:
        limit = connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout"))
    engine.dispose()
    assert limit == f"{IDLE_IN_TRANSACTION_MS // 60_000}min"
