"""The exclusive lease of the Conductor: at most one process conducts at a time.

A second DBOS executor with the same id would run its predecessor's work twice, so the lease is
taken before DBOS is launched and kept until its last step has stopped. It ends with the process
that holds it, however that dies.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

_POSTGRES_LEASE = 0x6C65617365  # "lease"


class Lease(Protocol):
    """Something that at most one process can hold."""

    def try_acquire(self) -> bool:
        """Take it if it is free; True if it is held now."""

    def held(self) -> bool:
        """Say whether it is still ours."""

    def release(self) -> None:
        """Give it back."""


class FileLease:
    """A lease on a file of this machine (or a shared file system with working locks)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Take it if it is free."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def held(self) -> bool:
        """Say whether it is still ours; a file lock cannot be lost."""
        return self._descriptor is not None

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class PostgresLease:
    """A lease on a PostgreSQL database: an advisory lock of one session."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None

    def try_acquire(self) -> bool:
        """Take it if it is free."""
        if self._connection is not None:
            return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_POSTGRES_LEASE))):
            connection.close()
            return False
        self._connection = connection
        return True

    def held(self) -> bool:
        """Say whether the session that holds it still lives."""
        if self._connection is None:
            return False
        try:
            self._connection.execute(sa.select(1))
        except sa.exc.DBAPIError:
            return False
        return True

    def release(self) -> None:
        """Give it back: the session ends, and the lock with it."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def lease_for(engine: sa.Engine) -> Lease:
    """Give the lease that belongs to an execution store's database."""
    if engine.dialect.name == "sqlite":
        return FileLease(Path(f"{engine.url.database}.lease"))
    return PostgresLease(engine)
