from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import importlib_metadata  # noqa: F401 - the first import puts a finder on `sys.meta_path`
import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio.engine as engine_module
from opentelemetry import trace
from sqlalchemy import Column, Integer, MetaData, String, Table, bindparam, event, func, insert, literal, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import declarative_base
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.concurrency import greenlet_spawn

import otel_async_sqla_agent
from tests.conftest import run
from tests.recording import Recording, database_attributes

MEMORY = "sqlite+aiosqlite://"
SQLALCHEMY_2 = not sqlalchemy.__version__.startswith("1.")
create_async_engine_imported_early = create_async_engine

Base: Any = declarative_base()
metadata = MetaData()
tag = Table("tag", metadata, Column("id", Integer, primary_key=True), Column("name", String, unique=True))


class User(Base):
    __tablename__ = "user_account"
    id = Column(Integer, primary_key=True)
    name = Column(String)


async def select_one(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    await engine.dispose()


def _with_async_creator() -> AsyncEngine:
    import aiosqlite

    async def creator() -> Any:
        return await aiosqlite.connect(":memory:")

    return create_async_engine(MEMORY, async_creator=creator)


def _with_pool() -> AsyncEngine:
    return create_async_engine(MEMORY, pool=sqlalchemy_asyncio.create_async_pool_from_url(MEMORY))


WAYS = [
    pytest.param(lambda: sqlalchemy_asyncio.create_async_engine(MEMORY), id="package"),
    pytest.param(lambda: engine_module.create_async_engine(MEMORY), id="module"),
    pytest.param(lambda: create_async_engine_imported_early(MEMORY), id="name-imported-early"),
    pytest.param(lambda: sqlalchemy_asyncio.async_engine_from_config({"sqlalchemy.url": MEMORY}), id="from-config"),
    pytest.param(lambda: AsyncEngine(_future_engine()), id="direct"),
    pytest.param(lambda: create_async_engine(MEMORY).execution_options(logging_token="x"), id="copy"),
    pytest.param(lambda: create_async_engine(MEMORY, poolclass=NullPool), id="null-pool"),
]
if SQLALCHEMY_2:
    WAYS += [pytest.param(_with_async_creator, id="async-creator"), pytest.param(_with_pool, id="pool")]


def _future_engine() -> Any:
    return sqlalchemy.create_engine(MEMORY, **({"_is_async": True} if SQLALCHEMY_2 else {"future": True}))


def pooled(url: str, **options: Any) -> AsyncEngine:
    """
    Make an engine with a queue of connections, which SQLAlchemy 1.4 does not give to SQLite by itself.
    """
    return create_async_engine(url, poolclass=AsyncAdaptedQueuePool, **options)


@pytest.mark.parametrize("make", WAYS)
@pytest.mark.parametrize("late", [False, True], ids=["agent-first", "engine-first"])
def test_every_way_to_make_an_engine(
    make: Callable[[], AsyncEngine], late: bool, agent: Any, recording: Recording
) -> None:
    """
    However an engine is made, before or after activation, a statement gives one span and so does its connect.
    """
    if late:
        engine = make()
        agent()
    else:
        agent()
        engine = make()
    run(select_one(engine))
    assert recording.tree() == [["connect"], ["SELECT"]]


def test_span_contents(agent: Any, recording: Recording, url: str) -> None:
    """
    A span says the system, the database, the text and the summary, under the stable names.
    """
    agent()
    run(select_one(create_async_engine(url)))
    assert [
        {
            "db.system.name": "sqlite",
            "db.namespace": url.partition("///")[2],
            "db.query.summary": "connect",
        },
        {
            "db.system.name": "sqlite",
            "db.namespace": url.partition("///")[2],
            "db.query.summary": "SELECT",
            "db.query.text": "SELECT ?",
        },
    ] == [database_attributes(span) for span in recording.ended]


@pytest.mark.parametrize(
    ("opt_in", "expected"),
    [
        pytest.param("", {"db.system", "db.operation", "db.statement"}, id="old"),
        pytest.param("http", {"db.system", "db.operation", "db.statement"}, id="other-signal"),
        pytest.param("database", {"db.system.name", "db.query.summary", "db.query.text"}, id="stable"),
        pytest.param(
            "http, database/dup",
            {
                "db.system",
                "db.operation",
                "db.statement",
                "db.system.name",
                "db.query.summary",
                "db.query.text",
            },
            id="both",
        ),
    ],
)
def test_attribute_names(opt_in: str, expected: set[str], agent: Any, recording: Recording) -> None:
    """
    OTEL_SEMCONV_STABILITY_OPT_IN chooses the names, as for all of OpenTelemetry's instrumentations.
    """
    agent(opt_in)
    run(select_one(create_async_engine(MEMORY)))
    assert expected == set(database_attributes(recording.ended[-1]))


def test_every_kind_of_statement_once(agent: Any, recording: Recording, url: str) -> None:
    """
    Core, ORM, text, driver SQL, DDL, executemany, a flush of 500, streams and defaults: one span each.
    """
    agent()

    async def main() -> None:
        engine = pooled(url)
        counter = Table(
            "counter", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer, default=select(7))
        )
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.run_sync(metadata.create_all, checkfirst=False)
            await connection.run_sync(counter.metadata.create_all, checkfirst=False)
            await connection.execute(insert(tag).values(name="a"))
            await connection.execute(insert(tag), [{"name": "b"}, {"name": "c"}])
            await connection.execute(insert(tag), [{"name": "only"}])
            await connection.execute(select(tag).where(tag.c.name.in_(["a", "b"])))
            await connection.execute(text("SELECT name FROM tag WHERE name = :name"), {"name": "a"})
            await connection.exec_driver_sql("SELECT name FROM tag WHERE name = ?", ("a",))
            await connection.execute(insert(counter))
            assert (await connection.execute(select(counter.c.n))).scalar() == 7
            rows = await connection.stream(select(tag))
            assert len([row async for row in rows]) == 4
        async with AsyncSession(engine) as session:
            session.add_all([User(name=f"user {number}") for number in range(500)])
            await session.commit()
            assert (await session.execute(select(func.count()).select_from(User))).scalar() == 500
        await engine.dispose()

    run(main())
    batch = "db.operation.batch.size"
    flush = [[f"BATCH INSERT user_account {batch}=500"]]
    assert [
        ["connect"],
        *[["PRAGMA"]] * 2,
        ["CREATE TABLE user_account"],
        ["CREATE TABLE tag"],
        ["CREATE TABLE counter"],
        ["INSERT tag"],
        [f"BATCH INSERT tag {batch}=2"],
        ["INSERT tag"],
        ["SELECT tag"],
        ["SELECT tag"],
        ["SELECT tag"],
        ["INSERT counter SELECT"],
        ["SELECT counter"],
        ["SELECT tag"],
        *(flush if SQLALCHEMY_2 else [["INSERT user_account"]] * 500),
        ["SELECT user_account"],
    ] == recording.tree(batch)


def test_text_is_masked_unless_parameterised(agent: Any, recording: Recording) -> None:
    """
    Values beside the text leave it as it is; without them, or with `literal_execute`, its literals are masked.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 'canary', 12"))
            await connection.execute(text("SELECT 'fixed', :x"), {"x": "canary"})
            await connection.execute(select(bindparam("x", "canary", literal_execute=True), literal("canary")))
        await engine.dispose()

    run(main())
    assert [span.attributes["db.query.text"] for span in recording.ended[1:]] == [
        "SELECT ?, ?",
        "SELECT 'fixed', ?",
        "SELECT ? AS anon_1, ? AS anon_2",
    ]


def test_transaction_control_is_silent(agent: Any, recording: Recording) -> None:
    """
    COMMIT, ROLLBACK, savepoints, ping and close make no span by default.
    """
    agent()
    run(_transactions(create_async_engine(MEMORY, pool_pre_ping=True)))
    assert recording.names == ["connect", "CREATE TABLE tag", "INSERT tag", "INSERT tag", "INSERT tag"]


def test_transaction_control_on_request(agent: Any, recording: Recording) -> None:
    """
    With `transaction` in SPANS, what is sent appears once; what the driver keeps to itself does not.
    """
    agent(spans="statement,transaction")
    run(_transactions(create_async_engine(MEMORY)))
    assert [name for name in recording.names if name != "ROLLBACK"] == [
        "CREATE TABLE tag",  # SQLite commits it by itself
        "INSERT tag",
        "SAVEPOINT",
        "INSERT tag",
        "RELEASE SAVEPOINT",
        "SAVEPOINT",
        "INSERT tag",
        "ROLLBACK TO SAVEPOINT",
        "COMMIT",
    ]


async def _transactions(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all, checkfirst=False)
    async with engine.begin() as connection:
        await connection.execute(insert(tag).values(name="a"))
        async with connection.begin_nested():
            await connection.execute(insert(tag).values(name="b"))
        nested = await connection.begin_nested()
        await connection.execute(insert(tag).values(name="c"))
        await nested.rollback()
    await engine.dispose()


def test_autocommit(agent: Any, recording: Recording) -> None:
    """
    AUTOCOMMIT changes nothing about a statement's span.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(MEMORY, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE x (y)"))
            await connection.execute(text("INSERT INTO x VALUES (:y)"), {"y": 1})
        await engine.dispose()

    run(main())
    assert recording.names == ["connect", "CREATE TABLE x", "INSERT x"]


def test_parent_is_the_callers_span(agent: Any, recording: Recording) -> None:
    """
    Each of 50 concurrent callers finds its own statement under its own span, and its span current afterwards.
    """
    agent(spans="statement")

    async def caller(engine: AsyncEngine, number: int) -> None:
        with recording.tracer.start_as_current_span(f"caller {number}") as span:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT :n"), {"n": number})
                assert trace.get_current_span() is span

    async def main(url: str) -> None:
        engine = create_async_engine(url, poolclass=NullPool)
        await asyncio.gather(*[caller(engine, number) for number in range(50)])

    run(main(MEMORY))
    assert sorted([f"caller {number} INTERNAL", ["SELECT"]] for number in range(50)) == sorted(recording.tree())


def test_span_is_current_below(agent: Any, recording: Recording) -> None:
    """
    What runs inside of the statement sees the statement's span as the current one.
    """
    agent()
    seen = []

    async def main() -> None:
        engine = create_async_engine(MEMORY)

        @event.listens_for(engine.sync_engine, "connect")
        def define(connection: Any, record: Any) -> None:
            seen.append(trace.get_current_span())

        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            execute = raw.driver_connection.execute

            async def spy(*args: Any) -> Any:
                seen.append(trace.get_current_span())
                return await execute(*args)

            cursor_class = type(await raw.driver_connection.cursor())
            original = cursor_class.execute

            async def cursor_spy(self: Any, *args: Any) -> Any:
                seen.append(trace.get_current_span())
                return await original(self, *args)

            cursor_class.execute = cursor_spy
            try:
                await connection.execute(text("SELECT 1"))
            finally:
                cursor_class.execute = original
        await engine.dispose()

    run(main())
    assert recording.names == ["connect", "SELECT"]
    assert [trace.INVALID_SPAN, recording.started[1]] == seen


def test_task_begun_inside_of_a_connect(agent: Any, recording: Recording, url: str) -> None:
    """
    A background task that was created while a connection was made has the spans of its own statements later.
    """
    agent()
    tasks = []

    async def main() -> None:
        engine = pooled(url)
        connected = asyncio.Event()

        async def later() -> None:
            await connected.wait()
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 'later'"))

        @event.listens_for(engine.sync_engine, "connect")
        def begin(connection: Any, record: Any) -> None:
            if not tasks:
                tasks.append(asyncio.ensure_future(later()))

        async with engine.connect():
            pass
        connected.set()
        await tasks[0]
        await engine.dispose()

    run(main())
    assert ["connect", "SELECT"] == recording.names


def test_system_is_read_again_after_connecting(agent: Any, recording: Recording, monkeypatch: Any) -> None:
    """
    MariaDB is told from MySQL by the first connection; spans after that say so.
    """
    agent()
    engine = create_async_engine(MEMORY)
    dialect = engine.sync_engine.dialect
    initialize = dialect.initialize

    def is_mariadb(connection: Any) -> None:
        initialize(connection)
        dialect.is_mariadb = True

    dialect.initialize = is_mariadb  # type: ignore[method-assign]
    run(select_one(engine))
    assert ["sqlite", "mariadb"] == [span.attributes["db.system.name"] for span in recording.ended]


def test_several_loops_and_threads(agent: Any, recording: Recording) -> None:
    """
    Engines in the event loops of several threads have their spans under their own thread's span.
    """
    agent(spans="statement")

    def work(number: int) -> None:
        with recording.tracer.start_as_current_span(f"thread {number}"):
            asyncio.run(select_one(create_async_engine(MEMORY)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[f"thread {number} INTERNAL", ["SELECT"]] for number in range(8)] == sorted(recording.tree())


def test_error(agent: Any, recording: Recording) -> None:
    """
    A failing statement's span has status, type, code and a message without values; the exception is untouched.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all, checkfirst=False)
            await connection.execute(insert(tag).values(name="canary"))
            with pytest.raises(IntegrityError) as caught:
                await connection.execute(insert(tag).values(name="canary"))
            assert type(caught.value.orig).__name__ == "IntegrityError"
            assert caught.value.__context__ is caught.value.orig or caught.value.__cause__ is caught.value.orig
            with pytest.raises(OperationalError):
                await connection.execute(text("SELECT * FROM nowhere WHERE x = 'canary'"))
        await engine.dispose()

    run(main())
    unique, missing = [span for span in recording.ended if not span.status.is_unset]
    assert unique.status.description == "UNIQUE constraint failed: tag.name"
    assert missing.status.description == "no such table: nowhere"
    assert [
        (item.name, dict(item.attributes)) for item in unique.events
    ] == [("exception", {"exception.type": "sqlite3.IntegrityError",
                           "exception.message": "UNIQUE constraint failed: tag.name"})]  # fmt: skip
    assert unique.attributes["error.type"] in ("2067", "sqlite3.IntegrityError")
    assert "canary" not in "".join(span.to_json() for span in recording.ended)


def test_error_of_a_batch(agent: Any, recording: Recording) -> None:
    """
    insertmanyvalues that fails in its second batch is one span with the error.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all, checkfirst=False)
            values = [{"name": f"canary {number % 1500}"} for number in range(2000)]
            with pytest.raises(IntegrityError):
                await connection.execute(insert(tag).returning(tag.c.id), values)
        await engine.dispose()

    if not SQLALCHEMY_2:
        pytest.skip("insertmanyvalues came with SQLAlchemy 2.0")
    run(main())
    assert recording.tree("db.operation.batch.size")[2] == ["BATCH INSERT tag ERROR db.operation.batch.size=2000"]
    assert recording.ended[-1].status.description == "UNIQUE constraint failed: tag.name"


@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute", "handle_error"])
def test_another_listener_raises(name: str, agent: Any, recording: Recording) -> None:
    """
    An exception of the application's own event listener leaves no span open and none current.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(MEMORY)

        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

        @event.listens_for(engine.sync_engine, name)
        def fail(*args: Any) -> None:
            raise RuntimeError("listener")

        with recording.tracer.start_as_current_span("caller") as span:
            async with engine.connect() as connection:
                with pytest.raises(RuntimeError, match="listener"):
                    await connection.execute(text("SELECT 1" if name != "handle_error" else "SELECT nothing"))
                if SQLALCHEMY_2 and name != "handle_error":
                    with pytest.raises(RuntimeError, match="listener"):
                        await connection.execute(insert(tag).returning(tag.c.id), [{"name": "a"}, {"name": "b"}])
            assert trace.get_current_span() is span
        await engine.dispose()

    run(main())
    recording.assert_all_ended()


SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"


def test_cancellation(agent: Any, recording: Recording, url: str) -> None:
    """
    A cancelled statement's span is an error of type CancelledError without a description.
    """
    agent(spans="statement")

    async def statement(engine: AsyncEngine) -> None:
        with recording.tracer.start_as_current_span("task") as span:
            try:
                async with engine.connect() as connection:
                    await connection.execute(text(SLOW))
            finally:
                assert trace.get_current_span() is span

    async def main() -> None:
        engine = pooled(url)
        task = asyncio.ensure_future(statement(engine))
        while len(recording.started) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.dispose()

    run(main())
    assert recording.tree("error.type") == [
        ["task INTERNAL", ["SELECT SELECT n SELECT n ERROR error.type='asyncio.exceptions.CancelledError'"]]
    ]
    assert recording.started[1].status.description is None
    assert recording.started[1].events == ()


def test_timeout(agent: Any, recording: Recording, url: str) -> None:
    """
    A time-out of the application ends the span, and is raised as ever.
    """
    agent(spans="statement")

    async def statement(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text(SLOW))

    async def main() -> None:
        engine = pooled(url)
        async with engine.connect():  # no time is spent on it later
            pass
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(statement(engine), 0.02)
        await engine.dispose()

    run(main())
    assert [span.status.status_code.name for span in recording.ended] == ["ERROR"]
    recording.assert_all_ended()


def test_failed_connect(agent: Any, recording: Recording) -> None:
    """
    A connect that fails is one span with the error, and leaves the caller's span current.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite:////nowhere/at/all.db")
        with recording.tracer.start_as_current_span("caller") as span:
            with pytest.raises(OperationalError):
                await engine.connect()
            assert trace.get_current_span() is span

    run(main())
    assert recording.tree() == [["caller INTERNAL", ["connect ERROR"]]]
    assert recording.ended[0].status.description == "unable to open database file"


def test_exhausted_pool(agent: Any, recording: Recording, url: str) -> None:
    """
    Waiting for the pool in vain makes no span of a statement or a connect, but one of its own.
    """
    agent()

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
        async with engine.connect():
            with pytest.raises(sqlalchemy.exc.TimeoutError):
                await engine.connect()
        await engine.dispose()

    run(main())
    assert [["connect"], ["pool timeout INTERNAL ERROR"]] == recording.tree()


def test_dispose_under_load(agent: Any, recording: Recording, url: str) -> None:
    """
    Disposing of an engine while 20 tasks use it leaves no span open, and new connects have their spans.
    """
    agent()

    async def work(engine: AsyncEngine) -> None:
        for _ in range(5):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

    async def main() -> None:
        engine = pooled(url, pool_size=5)
        tasks = [asyncio.ensure_future(work(engine)) for _ in range(20)]
        pools = []
        for _ in range(3):
            await asyncio.sleep(0.005)
            pools.append(engine.sync_engine.pool)
            await engine.dispose()
        await asyncio.gather(*tasks)
        await engine.dispose()
        for pool in pools:  # what was out while the pool was disposed of has come back to it since
            await greenlet_spawn(pool.dispose)

    run(main())
    assert recording.names.count("SELECT") == 100
    assert recording.names.count("connect") > 5


def test_unfinished_stream(agent: Any, recording: Recording) -> None:
    """
    Closing a stream early ends nothing twice and leaves nothing open.
    """
    agent(spans="statement")

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.connect() as connection:

            async def rows() -> Any:
                async for row in await connection.stream(text("SELECT 1 UNION SELECT 2 UNION SELECT 3")):
                    yield row

            generator = rows()
            assert tuple(await generator.__anext__()) == (1,)
            await generator.aclose()
        await engine.dispose()

    run(main())
    assert recording.names == ["SELECT SELECT SELECT"]


def test_one_connect_span_a_real_connection(agent: Any, recording: Recording, url: str) -> None:
    """
    A checkout of a pooled connection is no connect; a reconnect after invalidation is one.
    """
    agent(spans="connect")

    async def main() -> None:
        engine = pooled(url)
        for _ in range(3):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        async with engine.connect() as connection:
            await connection.invalidate()
        await select_one(engine)

    run(main())
    assert recording.names == ["connect", "connect"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"spans": "none"}, [], id="no-spans"),
        pytest.param({"spans": ["connect"]}, ["connect"], id="connect-only"),
        pytest.param({"exclude": "select 1"}, ["connect"], id="exclude-ignores-case"),
        pytest.param({"require_parent": True}, [], id="require-parent"),
        pytest.param({"mode": "off"}, [], id="off"),
        pytest.param({"mode": otel_async_sqla_agent.Mode.ENGINE}, ["connect", "SELECT"], id="engine"),
    ],
)
def test_options(options: dict[str, Any], expected: list[str], agent: Any, recording: Recording) -> None:
    """
    Options of `instrument()` do what their variables do.
    """
    agent(**options)
    run(select_one(create_async_engine(MEMORY)))
    assert expected == recording.names


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"query_text": "off"}, None, id="off"),
        pytest.param({"query_text": "raw"}, "SELECT 1", id="raw"),
        pytest.param({"query_text": "masked"}, "SELECT ?", id="masked"),
        pytest.param({"query_max_length": 6}, "SELEC…", id="cut"),
    ],
)
def test_query_text(options: dict[str, Any], expected: str | None, agent: Any, recording: Recording) -> None:
    """
    QUERY_TEXT and QUERY_MAX_LENGTH decide what a span shows of the text.
    """
    agent(**options)
    run(select_one(create_async_engine(MEMORY)))
    assert expected == recording.ended[-1].attributes.get("db.query.text")


def test_min_duration(agent: Any, recording: Recording) -> None:
    """
    With MIN_DURATION_MS only slow and failing statements make a span, with the true start and the caller as parent.
    """
    agent(spans="statement", min_duration_ms=20)

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        with recording.tracer.start_as_current_span("caller"):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                await connection.execute(text(SLOW))
                with pytest.raises(OperationalError):
                    await connection.execute(text("SELECT * FROM nowhere"))
        await engine.dispose()

    run(main())
    assert [["caller INTERNAL", ["SELECT SELECT n SELECT n"], ["SELECT nowhere ERROR"]]] == recording.tree()
    slow = recording.started[1]
    assert slow.end_time - slow.start_time >= 20e6


def test_suppress_instrumentation(agent: Any, recording: Recording) -> None:
    """
    OpenTelemetry's own switch, with which exporters silence themselves, is honoured.
    """
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    agent()
    with suppress_instrumentation():
        run(select_one(create_async_engine(MEMORY)))
    assert recording.started == []


def test_statement_that_is_no_text(agent: Any, recording: Recording) -> None:
    """
    A dialect that is given a mock in place of a statement gets it, and the span has no text.
    """
    agent()
    dialect = create_async_engine(MEMORY).sync_engine.dialect
    calls = []

    class Cursor:
        def execute(self, *args: Any) -> None:
            calls.append(args)

    statement = object()
    dialect.do_execute(Cursor(), statement, (1,))
    assert [(statement, (1,))] == calls
    assert [database_attributes(span) for span in recording.ended] == [{"db.system.name": "sqlite"}]


def test_uninstrument_gives_identical_objects_back(agent: Any, recording: Recording) -> None:
    """
    After uninstrument() every class, dialect and engine is what it was, and no span is made.
    """
    engine = create_async_engine(MEMORY)
    dialect, sync_engine = engine.sync_engine.dialect, engine.sync_engine

    def everything() -> list[Any]:
        return [
            dict(vars(AsyncEngine)),
            dict(vars(_ConnectionRecord)),
            dict(vars(dialect)),
            dict(vars(sync_engine)),
            dict(vars(sync_engine.pool)),
            sqlalchemy_asyncio.create_async_engine,
            engine_module.create_async_engine,
            list(__import__("sys").meta_path),
        ]

    before = everything()
    agent()
    assert before != everything()
    otel_async_sqla_agent.uninstrument()
    assert before == everything()
    run(select_one(engine))
    run(select_one(create_async_engine(MEMORY)))
    assert recording.started == []


def test_instrument_again(agent: Any, recording: Recording) -> None:
    """
    Instrumenting after uninstrument() gives one span a statement again.
    """
    engine = create_async_engine(MEMORY)
    for _ in range(3):
        agent()
        otel_async_sqla_agent.uninstrument()
    agent()
    run(select_one(engine))
    assert recording.names == ["connect", "SELECT"]


def test_another_tools_wrap_survives(agent: Any, recording: Recording) -> None:
    """
    A method that another tool wrapped before us comes back; one that it wrapped over ours stays its own.
    """
    dialect = create_async_engine(MEMORY).sync_engine.dialect
    below = dialect.do_execute = lambda *args: None  # type: ignore[method-assign]
    agent()
    above = dialect.do_ping = lambda *args: True  # type: ignore[method-assign]
    otel_async_sqla_agent.uninstrument()
    assert (below, above) == (dialect.do_execute, dialect.do_ping)


def test_another_tools_wrap_of_a_class_survives(agent: Any, recording: Recording) -> None:
    """
    What another tool has put over our wraps of SQLAlchemy's classes stays, and ours below it does nothing any more.
    """
    pristine = AsyncEngine.__init__, vars(_ConnectionRecord)["_ConnectionRecord__connect"]
    agent()
    create_async_engine(MEMORY)
    ours = AsyncEngine.__init__, vars(_ConnectionRecord)["_ConnectionRecord__connect"]
    calls = []

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append("init")
        ours[0](self, *args, **kwargs)

    def connect(self: Any) -> None:
        calls.append("connect")
        ours[1].__get__(self)()

    AsyncEngine.__init__ = init  # type: ignore[method-assign]
    _ConnectionRecord._ConnectionRecord__connect = connect
    try:
        otel_async_sqla_agent.uninstrument()
        run(select_one(create_async_engine(MEMORY)))
    finally:
        AsyncEngine.__init__ = pristine[0]  # type: ignore[method-assign]
        _ConnectionRecord._ConnectionRecord__connect = pristine[1]
    assert ["init", "connect"] == calls
    assert [] == recording.started


@pytest.mark.skipif(not SQLALCHEMY_2, reason="async_creator and insertmanyvalues came with SQLAlchemy 2.0")
def test_statements_inside_of_others(agent: Any, recording: Recording, url: str) -> None:
    """
    Another engine's statement below a connect, and a listener's below a batch, make spans of their own.
    """
    agent()

    async def main() -> None:
        import aiosqlite

        vault = create_async_engine(MEMORY)

        async def creator() -> Any:
            async with vault.connect() as connection:
                await connection.execute(text("SELECT 'secret'"))
            return await aiosqlite.connect(url.partition("///")[2])

        engine = pooled(url, async_creator=creator)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all, checkfirst=False)
            auditing = []

            @event.listens_for(engine.sync_engine, "after_cursor_execute")
            def audit(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
                if not auditing and statement.startswith("INSERT"):
                    auditing.append(1)
                    conn.exec_driver_sql("SELECT 'audit' FROM tag")
                    with conn.engine.connect() as other:
                        other.exec_driver_sql("SELECT 'audit' FROM tag")

            await connection.execute(insert(tag).returning(tag.c.id), [{"name": "a"}, {"name": "b"}])
        await engine.dispose()
        await vault.dispose()

    run(main())
    assert [
        ["connect"],
        ["connect"],
        ["SELECT"],
        ["CREATE TABLE tag"],
        ["BATCH INSERT tag", ["SELECT tag"], ["connect"], ["SELECT"], ["SELECT tag"]],
    ] == recording.tree()


def test_nothing_holds_an_engine(agent: Any, recording: Recording) -> None:
    """
    A dropped engine, its pool and its dialect are collected.
    """
    agent()
    engine = create_async_engine(MEMORY)
    run(select_one(engine))
    references = [weakref.ref(engine.sync_engine), weakref.ref(engine.sync_engine.dialect)]
    del engine
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_sync_engines_are_left_alone(agent: Any, recording: Recording) -> None:
    """
    A sync engine of the same process has no bracket and no span.
    """
    agent()
    create_async_engine(MEMORY)
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert recording.started == []
    assert not [name for name in vars(engine.dialect) if name.startswith("do_") or "otel" in name]
