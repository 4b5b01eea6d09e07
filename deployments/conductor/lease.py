"""The Conductor's exclusive lease: at most one process leads at a time.

A second DBOS executor with the same id would run its predecessor's work twice. So the lease is
acquired before DBOS is launched and held until its last step has stopped. It ends with the process
that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import sqlalchemy as sa

_POSTGRES_LEASE = 0x6C65617365  # "lease"


class FileLease:
    """A lock on a file of this machine, or of a shared file system with working locks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Acquire the lease if it is free, and return whether it is held now."""
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
        """Return whether this process holds the lease; a file lock cannot be lost."""
        return self._descriptor is not None

    def release(self) -> None:
        """Release the lease."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class PostgresLease:
    """An advisory lock of one session of PostgreSQL."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None

    def try_acquire(self) -> bool:
        """Acquire the lease if it is free, and return whether it is held now."""
        if self._connection is not None:
            return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(_POSTGRES_LEASE))):
            connection.close()
            return False
        self._connection = connection
        return True

    def held(self) -> bool:
        """Return whether the session that holds the lease is still open."""
        if self._connection is None:
            return False
        try:
            self._connection.execute(sa.select(1))
        except sa.exc.DBAPIError:
            return False
        return True

    def release(self) -> None:
        """Release the lease by ending its session."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def lease_for(engine: sa.Engine) -> FileLease | PostgresLease:
    """Return the lease on an execution store's database."""
    if engine.dialect.name == "sqlite":
        return FileLease(Path(f"{engine.url.database}.lease"))
    return PostgresLease(engine)
