"""Tables in a database, by SQLAlchemy: the site's file has one SELECT, which runs in a read-only transaction.

The query is a subquery of ours, which sorts its rows: a database promises no order, and which records are held out
depends on their places.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from typing_extensions import override

from client.data.sources.chunks import Chunk, Table, array_of
from client.data.sources.optional import needing
from privacy.failures import reason
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from client.data.sources.options import Sql

_ROWS = 10_000  # at a time
_PATIENCE = 10  # seconds to connect
_MOST = 1 << 20  # bytes of the query
_END = re.compile(r"\s*;(;|\s|--[^\n]*(\n|\Z))*\Z")  # of a statement: nothing but comments follows


class SqlTable(Table):
    """The rows of a query."""

    options: Sql
    nothing = ("the query returns no rows", "correct it, or fill the database's tables")

    def __init__(self, path: Path, options: Sql, folder: Path) -> None:
        super().__init__(path, options)
        self.options, self._folder = options, folder

    @override
    def chunks(self, wanted: Mapping[str, str | None]) -> Iterator[Chunk]:
        engine, start, last = self._engine(), 1, None
        try:
            with (
                self._reading(engine) as connection,
                self._asking("the database refuses the query", "run it there to see why"),
            ):
                statement = self._statement(engine)
                with closing(connection.exec_driver_sql(statement)) as result:
                    names = list(result.keys())
                    places = self.places(wanted, [_bare(name, names) for name in names])
                    key = self._key(names)
                    for rows in result.partitions(_ROWS):
                        last = self._check_order(rows, key, start, last)
                        columns = {name: array_of([row[place] for row in rows]) for name, place in places.items()}
                        yield Chunk(columns, range(start, start + len(rows)))
                        start += len(rows)
        finally:
            engine.dispose()

    def _key(self, names: Sequence[str]) -> int:
        if self.options.order_by not in names:
            self.fail(f"there is no column `{self.options.order_by}` for order_by", "name one of the query's columns")
        return names.index(self.options.order_by)

    def _statement(self, engine: Engine) -> str:
        try:
            query = read_file(self.path)[:_MOST].decode()
        except OSError as error:
            self.fail(reason(error), "name a text file with one SELECT")
        except UnicodeDecodeError:
            self.fail("not UTF-8 text", "name a text file with one SELECT")
        query = _END.sub("", query).strip()
        if not query:
            self.fail("the file is empty", "write one SELECT in it")
        order = engine.dialect.identifier_preparer.quote(self.options.order_by)
        return f"SELECT * FROM (\n{query}\n) records ORDER BY {order}"  # noqa: S608 - the site's own query

    def _check_order(self, rows: Sequence[Any], key: int, start: int, last: object) -> object:
        """Check that no two rows have the same place.

        Raises:
            DataError: if two have, or one has none.
        """
        keys = [last, *(row[key] for row in rows)]
        for at, (earlier, next_key) in enumerate(pairwise(keys), start):
            if next_key is None or earlier == next_key:
                problem = f"row {at} has {'no' if next_key is None else 'the same'} `{self.options.order_by}`"
                advice = "order_by in [data.source] must be different in every row, so that records keep their places"
                self.fail(f"{problem}{'' if next_key is None else ' as the one before'}", advice)
        return keys[-1]

    def _engine(self) -> Engine:
        with needing("sqlalchemy", "sql"):
            import sqlalchemy as sa  # noqa: PLC0415 - an extra
            from sqlalchemy.exc import ArgumentError, SQLAlchemyError  # noqa: PLC0415
        try:
            url = sa.make_url(self.options.url)
        except (ArgumentError, ValueError):
            advice = "write for example postgresql+psycopg://reader@db.example.org/omop, or sqlite:///omop.db"
            self.fail("url in [data.source] is not one that SQLAlchemy reads", advice)
        variable = self.options.password_variable
        if url.password is not None:
            problem = "url in [data.source] contains a password"
            self.fail(problem, f"remove it, and set the environment variable {variable}")
        backend, settings = url.get_backend_name(), dict[str, Any]()
        if backend == "sqlite":
            file = (self._folder / (url.database or "")).absolute()
            if not file.is_file():
                self.fail("there is no file of the SQLite database", "correct url in [data.source]")
            settings["creator"] = lambda: sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
        else:
            if variable in os.environ:
                url = url.set(password=os.environ[variable])
            settings["connect_args"] = {"connect_timeout": _PATIENCE} if backend == "postgresql" else {}
        try:
            return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True, **settings)
        except (ImportError, SQLAlchemyError):
            advice = "pip install 'cloister[sql]' brings PostgreSQL's, psycopg; install others, or correct the url"
            self.fail("the driver of url in [data.source] is not installed", advice)

    @contextmanager
    def _reading(self, engine: Engine) -> Iterator[Connection]:
        """Connect, read-only where the database knows how, and roll back at the end."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": _ROWS, "no_parameters": True}
        if engine.dialect.name == "postgresql":
            options |= {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        advice = f"check url in [data.source], the password in {self.options.password_variable}, and the network"
        with self._asking("the database cannot be reached", advice):
            connection = engine.connect()
            connection = connection.execution_options(**options)
        try:
            yield connection
        finally:
            with self._closing(SQLAlchemyError):
                connection.close()

    @contextmanager
    def _closing(self, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except kind:  # the connection is lost already
            return

    @contextmanager
    def _asking(self, problem: str, advice: str) -> Iterator[None]:
        """Turn a database's error into one without its text, which may quote a row."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        try:
            yield
        except SQLAlchemyError as error:
            kind = type(getattr(error, "orig", None) or error).__name__
            self.fail(f"{problem} ({kind})", advice)


def _bare(name: str, names: Sequence[str]) -> str:
    """Undo SQLite's renaming of a second column of one name to `name:1`."""
    bare, _, number = name.rpartition(":")
    return bare if number.isdigit() and bare in names else name
