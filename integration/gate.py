"""
Keep a statement waiting on the server for as long as a test wants, and know when it waits.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

import psycopg
import pymysql
from typing_extensions import Self

from integration.databases import driver_url

# Waits where the gate is shut.
WAIT = "pg_advisory_xact_lock(1)"


class Gate(ABC):
    """
    Something that a call waits for: the server's, or the application's own.

    It talks to the server by sync drivers, which make no spans.
    """

    def __init__(self) -> None:
        self._is_reached = False

    @abstractmethod
    def shut(self) -> None:
        """
        Make who comes wait.
        """

    @abstractmethod
    def open(self) -> None:
        """
        Let all go on.
        """

    @abstractmethod
    def close(self) -> None:
        """
        Remove what it is made of.
        """

    @abstractmethod
    def somebody_waits(self) -> bool:
        """
        Tell whether a call has reached the server, and waits there.
        """

    async def wait(self) -> None:
        """
        Wait in the application, for ever.
        """
        self._is_reached = True
        await asyncio.Event().wait()

    async def reached(self, task: asyncio.Task[Any]) -> None:
        """
        Return when somebody waits; fail where nobody is going to.
        """
        while not self._is_reached and not self.somebody_waits():
            assert not task.done(), task
            await asyncio.sleep(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self.close()


class PostgresqlGate(Gate):
    """
    Shut, it stops who reads or writes `tea`, and who calls WAIT; a COMMIT of rows of `slow` does.
    """

    def __init__(self) -> None:
        super().__init__()
        conninfo = driver_url("asyncpg").set(drivername="postgresql").render_as_string(hide_password=False)
        # A test that has locked `tea` itself fails, instead of waiting for ever.
        self._holder = psycopg.connect(conninfo, options="-c lock_timeout=10s")
        self._watcher = psycopg.connect(conninfo, autocommit=True)
        self._watcher.execute(
            f"""
            DROP TABLE IF EXISTS tea; -- another test's
            CREATE TABLE tea (id int);
            INSERT INTO tea VALUES (1);
            CREATE TABLE slow (id int);
            CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM {WAIT}; RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION wait();
            """
        )

    def shut(self) -> None:
        self._holder.execute("LOCK TABLE tea")
        self._holder.execute(f"SELECT {WAIT}")

    def open(self) -> None:
        self._holder.rollback()

    def somebody_waits(self) -> bool:
        row = self._watcher.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
            " WHERE datname = current_database() AND NOT granted"
        ).fetchone()
        return row is not None and row[0] > 0

    def close(self) -> None:
        # Nobody is left in a transaction: what a cancelled connection has begun is over for the server, too, by then.
        self._watcher.execute("DROP TABLE tea, slow; DROP FUNCTION wait")
        self._holder.close()
        self._watcher.close()


class MysqlGate(Gate):
    """
    Shut, it stops each COMMIT of the server.
    """

    def __init__(self) -> None:
        super().__init__()
        url = driver_url("asyncmy")
        self._database = url.database
        self._holder, self._watcher = (
            pymysql.connect(host=url.host, port=url.port or 3306, user=url.username, database=url.database)
            for _ in range(2)
        )
        self._watcher.cursor().execute("CREATE TABLE slow (id int) ENGINE=InnoDB")

    def shut(self) -> None:
        self._holder.cursor().execute("FLUSH TABLES WITH READ LOCK")

    def open(self) -> None:
        self._holder.cursor().execute("UNLOCK TABLES")

    def somebody_waits(self) -> bool:
        with self._watcher.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM information_schema.processlist WHERE db = %s AND info = 'COMMIT' AND state LIKE %s",
                (self._database, "Waiting for % lock"),
            )
            return cursor.fetchone() is not None

    def close(self) -> None:
        self._watcher.cursor().execute("DROP TABLE slow")
        self._holder.close()
        self._watcher.close()
