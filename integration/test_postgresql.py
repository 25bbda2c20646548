from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from opentelemetry import trace
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Sequence, String, Table, event, func, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import declarative_base

import otel_async_sqla_agent
from integration.databases import server_address
from tests.conftest import run
from tests.recording import Recording, database_attributes

SQLALCHEMY_2 = not sqlalchemy.__version__.startswith("1.")


class Schema:
    """
    Tables of one test, in a schema of their own.
    """

    def __init__(self) -> None:
        self.name = f"test_{uuid.uuid4().hex[:8]}"
        self.metadata = MetaData(schema=self.name)
        base: Any = declarative_base(metadata=self.metadata)

        class User(base):
            __tablename__ = "users"
            id = Column(Integer, primary_key=True)
            name = Column(String(200), unique=True)

        self.user = User
        self.sequence = Sequence("counter_seq", metadata=self.metadata)
        self.counter = Table(
            "counter",
            self.metadata,
            Column("id", Integer, self.sequence, primary_key=True),
            Column("n", Integer, default=func.length("four")),
        )
        self.child = Table(
            "child",
            self.metadata,
            Column("parent", Integer, ForeignKey(f"{self.name}.users.id", deferrable=True, initially="DEFERRED")),
        )

    def next_number(self, connection: Any) -> int:
        """
        Execute the sequence by itself, which SQLAlchemy does on a way of its own.
        """
        execute = connection.scalar if SQLALCHEMY_2 else connection.execute
        return int(execute(self.sequence))


@pytest.fixture
def schema(postgresql: str) -> Iterator[Schema]:
    schema = Schema()

    async def execute(*statements: str) -> None:
        engine = create_async_engine(postgresql)
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
        await engine.dispose()

    run(execute(f"CREATE SCHEMA {schema.name}"))
    yield schema
    run(execute(f"DROP SCHEMA {schema.name} CASCADE"))


async def create(engine: AsyncEngine, schema: Schema) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(schema.metadata.create_all, checkfirst=False)


def tidy(tree: Any, schema: Schema) -> Any:
    if isinstance(tree, list):
        return [tidy(item, schema) for item in tree]
    return tree.replace(f"{schema.name}.", "")


BATCH = "db.operation.batch.size"


def test_scenario(postgresql: str, schema: Schema, agent: Any, recording: Recording) -> None:
    """
    A whole scenario on asyncpg: one span a statement, one a connect, each under its caller, nothing else.
    """
    agent()

    async def main() -> None:
        engine, other = create_async_engine(postgresql), create_async_engine(postgresql)
        await create(engine, schema)
        assert ["CREATE SEQUENCE", *["CREATE TABLE"] * 3, "connect"] == sorted(
            name.rpartition(" ")[0] or name for name in recording.names
        )
        recording.clear()
        with recording.tracer.start_as_current_span("flush"):
            async with AsyncSession(engine) as session:
                session.add_all([schema.user(name=f"user {number}") for number in range(500)])
                await session.commit()
        with recording.tracer.start_as_current_span("read") as span:
            async with AsyncSession(engine) as session:
                statement = select(schema.user).where(schema.user.name == "user 7")
                assert (await session.execute(statement)).scalar_one().name == "user 7"
            async with engine.connect() as connection:
                rows = await connection.stream(select(func.generate_series(1, 1000)))
                assert len([row async for row in rows]) == 1000
            assert trace.get_current_span() is span
        with recording.tracer.start_as_current_span("write"):
            async with other.begin() as connection:
                await connection.execute(insert(schema.counter))
                assert 2 == await connection.run_sync(schema.next_number)
                many = insert(schema.user).values(name=sqlalchemy.bindparam("n"))
                await connection.execute(many, [{"n": "a"}, {"n": "b"}])
                async with connection.begin_nested():
                    await connection.execute(text(f"DELETE FROM {schema.name}.users WHERE name = :n"), {"n": "a"})
                with pytest.raises(IntegrityError):
                    async with connection.begin_nested():
                        await connection.execute(insert(schema.user).values(name="b"))
                with pytest.raises(ProgrammingError):
                    async with connection.begin_nested():
                        await connection.exec_driver_sql("SELECT 'canary' FROM nowhere")
        await engine.dispose()
        await other.dispose()

    run(main())
    flush = [[f"BATCH INSERT users {BATCH}=500"]] if SQLALCHEMY_2 else [["INSERT users"]] * 500
    expected = [
        ["flush INTERNAL", *flush],
        ["read INTERNAL", ["SELECT users"], ["SELECT"]],
        [
            "write INTERNAL",
            ["connect"],
            ["INSERT counter"],
            ["select"],
            [f"BATCH INSERT users {BATCH}=2"],
            ["DELETE users"],
            ["INSERT users ERROR db.response.status_code='23505'"],
            ["SELECT nowhere ERROR db.response.status_code='42P01'"],
        ],
    ]
    assert expected == tidy(recording.tree(BATCH, "db.response.status_code"), schema)


def test_attributes(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    A span says where the database is, without any secret of the URL.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(make_url(postgresql).set(password="canary"))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 'canary'"))
        await engine.dispose()

    run(main())
    url = make_url(postgresql)
    expected = {
        "db.system.name": "postgresql",
        "db.namespace": url.database,
        "server.address": server_address(url),
        "db.query.text": "SELECT ?",
        "db.query.summary": "SELECT",
    }
    if url.port not in (None, 5432):
        expected["server.port"] = url.port
    assert expected == database_attributes(recording.ended[-1])
    assert "canary" not in "".join(span.to_json() for span in recording.ended)


def test_old_attributes(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    The old names say the same, and the user's name, never the password.
    """
    agent("")

    async def main() -> None:
        engine = create_async_engine(make_url(postgresql).set(password="canary"))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 'canary'"))
        await engine.dispose()

    run(main())
    url = make_url(postgresql)
    expected = {
        "db.system": "postgresql",
        "db.name": url.database,
        "db.user": url.username,
        "net.peer.name": server_address(url),
        "net.peer.port": (url.port or 5432) if url.host else None,
        "net.transport": "ip_tcp" if url.host else "other",
        "db.statement": "SELECT ?",
        "db.operation": "SELECT",
    }
    assert {key: value for key, value in expected.items() if value} == database_attributes(recording.ended[-1])
    assert "canary" not in "".join(span.to_json() for span in recording.ended)


def test_cancellation_and_timeouts(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    Cancelled by a task, by a time-out of the application and by the server's: three different errors.
    """
    agent(spans="statement")

    async def sleep(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(30)"))

    async def main() -> None:
        engine = create_async_engine(postgresql)
        with recording.tracer.start_as_current_span("caller") as span:
            task = asyncio.ensure_future(sleep(engine))
            while len(recording.started) < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with engine.connect():  # no time is spent on it later
                pass
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(sleep(engine), 0.2)
            async with engine.connect() as connection:
                await connection.execute(text("SET statement_timeout = 10"))
                with pytest.raises(DBAPIError):
                    await connection.execute(text("SELECT pg_sleep(30)"))
            assert trace.get_current_span() is span
        await engine.dispose()

    run(main())
    cancelled = ["SELECT ERROR error.type='asyncio.exceptions.CancelledError'"]
    assert [["caller INTERNAL", cancelled, cancelled, ["SET"], ["SELECT ERROR error.type='57014'"]]] == recording.tree(
        "error.type"
    )


# SQLAlchemy 1.4 leaves the connection to the garbage collector after a failing COMMIT, also without the agent.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failing_commit(postgresql: str, schema: Schema, agent: Any, recording: Recording) -> None:
    """
    A COMMIT that fails makes a span with its own start, though COMMIT makes none by default.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(postgresql)
        await create(engine, schema)
        recording.clear()
        with pytest.raises(IntegrityError):
            async with engine.begin() as connection:
                await connection.execute(insert(schema.child).values(parent=12345))
        await engine.dispose()

    run(main())
    assert tidy(recording.tree("error.type"), schema) == [["INSERT child"], ["COMMIT ERROR error.type='23503'"]]
    insertion, commit = recording.ended
    assert commit.start_time >= insertion.end_time
    assert commit.end_time > commit.start_time


def test_transaction_spans(postgresql: str, schema: Schema, agent: Any, recording: Recording) -> None:
    """
    With `transaction` in SPANS each COMMIT, ROLLBACK and savepoint that is sent appears once, and no other.
    """
    agent(spans="statement,transaction")

    async def main() -> None:
        engine = create_async_engine(postgresql)
        await create(engine, schema)
        recording.clear()
        async with engine.begin() as connection:
            await connection.execute(insert(schema.user).values(name="a"))
            async with connection.begin_nested():
                await connection.execute(insert(schema.user).values(name="b"))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        async with engine.connect():
            pass
        await engine.dispose()

    run(main())
    assert tidy(recording.tree(), schema) == [
        ["INSERT users"],
        ["SAVEPOINT"],
        ["INSERT users"],
        ["RELEASE SAVEPOINT"],
        ["COMMIT"],
        ["SELECT"],
        ["ROLLBACK"],
    ]


def test_recovery_of_two_phase_transactions(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    The question for prepared transactions is transaction control: one span on request, none else.
    """

    async def main() -> None:
        engine = create_async_engine(postgresql)
        async with engine.connect() as connection:
            assert [] == await connection.run_sync(lambda sync: sync.recover_twophase())
        await engine.dispose()

    agent(spans="statement,transaction")
    run(main())
    assert "RECOVER PREPARED" == recording.names[0]
    otel_async_sqla_agent.uninstrument()
    recording.clear()
    agent(spans="statement")
    run(main())
    assert [] == recording.names


def test_hundred_parents(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    A hundred concurrent callers over a pool of ten: each statement under its own caller.
    """
    agent(spans="statement")

    async def caller(engine: AsyncEngine, number: int) -> None:
        with recording.tracer.start_as_current_span(f"caller {number:02}"):
            async with engine.connect() as connection:
                assert number == (await connection.execute(text("SELECT CAST(:n AS integer)"), {"n": number})).scalar()

    async def main() -> None:
        engine = create_async_engine(postgresql, pool_size=10, max_overflow=0)
        await asyncio.gather(*[caller(engine, number) for number in range(100)])
        await engine.dispose()

    run(main())
    assert [[f"caller {number:02} INTERNAL", ["SELECT"]] for number in range(100)] == sorted(recording.tree())


def test_silent_round_trips(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    Pre-ping, AUTOCOMMIT, isolation levels and what a listener does at connect make no span of their own.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(postgresql, pool_pre_ping=True, isolation_level="AUTOCOMMIT")

        @event.listens_for(engine.sync_engine, "connect")
        def set_up(connection: Any, record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("SET application_name TO 'x'")
            cursor.close()

        for _ in range(2):
            async with engine.connect() as connection:
                connection = await connection.execution_options(isolation_level="SERIALIZABLE")
                await connection.execute(text("SELECT 1"))
        await engine.dispose()

    run(main())
    assert recording.names == ["connect", "SELECT", "SELECT"]


def test_failed_connect(postgresql: str, agent: Any, recording: Recording) -> None:
    """
    A connect that the server refuses is one span with the SQLSTATE, without the names that it was tried with.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(make_url(postgresql).set(database="canary"))
        with pytest.raises(Exception, match="does not exist"):
            await engine.connect()

    run(main())
    [span] = recording.ended
    assert (
        span.name,
        span.attributes["error.type"],
        span.status.description,
    ) == ("connect", "3D000", "database ? does not exist")
