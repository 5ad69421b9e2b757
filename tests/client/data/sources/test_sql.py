"""A query's rows, from SQLite and a real PostgreSQL: the same records, read-only, in an order that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
import sqlalchemy as sa

from client.data.columns import AnyColumn, Category, Date, Flag, Number
from client.data.sources.options import Sql
from client.data.sources.registry import Source
from client.task.table_task import TableTask
from privacy.errors import DataError
from tests.client.data.sources.cohorts import SECRET, Ward, complaint, problems, read
from tests.client.data.sources.databases import PASSWORD, postgres

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TABLES = """
CREATE TABLE person (person_id INTEGER PRIMARY KEY, year_of_birth INTEGER NOT NULL, gender_concept_id INTEGER,
                     note TEXT);
CREATE TABLE measurement (measurement_id INTEGER PRIMARY KEY, person_id INTEGER NOT NULL,
                          measurement_concept_id INTEGER NOT NULL, measurement_date DATE NOT NULL,
                          value_as_number NUMERIC(8, 2));
CREATE TABLE condition_occurrence (condition_occurrence_id INTEGER PRIMARY KEY, person_id INTEGER NOT NULL,
                                   condition_concept_id INTEGER NOT NULL);
INSERT INTO person VALUES (3, 1960, 8507, 'x'), (1, 1940, 8532, 'x'), (2, 1980, NULL, '4711-Smith'), (4, 2000, 0, 'x');
INSERT INTO measurement VALUES (1, 1, 3004410, '2024-01-01', 7.5), (2, 1, 3004410, '2023-01-01', 15.5),
                               (3, 3, 3004410, '2024-06-01', 6), (4, 3, 1, '2024-06-01', 100);
INSERT INTO condition_occurrence VALUES (1, 3, 201826), (2, 2, 5)
"""
QUERY = """
SELECT p.person_id, p.year_of_birth,
       CASE p.gender_concept_id WHEN 8532 THEN 'female' WHEN 8507 THEN 'male' ELSE 'unknown' END AS sex,
       (SELECT m.value_as_number FROM measurement m
        WHERE m.person_id = p.person_id AND m.measurement_concept_id = 3004410
        ORDER BY m.measurement_date DESC, m.measurement_id DESC LIMIT 1) AS hba1c,
       (SELECT MAX(m.measurement_date) FROM measurement m WHERE m.person_id = p.person_id) AS measured,
       EXISTS (SELECT 1 FROM condition_occurrence c
               WHERE c.person_id = p.person_id AND c.condition_concept_id = 201826) AS diabetes
FROM person p -- everyone, 100 % of ':them'
;
"""


class Diabetes(TableTask):
    """Who has diabetes, from an OMOP cohort."""

    columns: ClassVar[Sequence[AnyColumn]] = [
        Number("year_of_birth", low=1920, high=2020),
        Category("sex", ["female", "male"], other="other"),
        Number("hba1c", low=3, high=15, missing=6, unit="%"),
        Date("measured", low=Ward.columns[4].low, high=Ward.columns[4].high, missing=Ward.columns[4].low),  # type: ignore[union-attr,arg-type]
    ]
    target = Flag("diabetes")
    model, loss = Ward.model, Ward.loss


EXPECTED = [[-0.6, 1, 0, 0, -0.25, 0.6, 0], [0.2, 0, 0, 1, -0.5, -1, 0], [-0.2, 0, 1, 0, -0.5, 0.77, 1],
            [0.6, 0, 0, 1, -0.5, -1, 0]]  # fmt: skip
"""Inputs and target of persons 1 to 4."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        fill(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def cohort(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Sql]:
    """A query over a database, in a site's folder."""
    url = "sqlite:///omop.db"
    if request.param == "sqlite":
        fill(f"sqlite:///{tmp_path}/omop.db")
    else:
        url = request.getfixturevalue("server")
        monkeypatch.setenv("CLOISTER_SQL_PASSWORD", PASSWORD)
    (tmp_path / "cohort.sql").write_text(QUERY)
    return tmp_path / "cohort.sql", Sql(url=url, order_by="person_id")


def fill(url: str) -> None:
    address = sa.make_url(url)
    engine = sa.create_engine(address.set(password=PASSWORD) if address.username else address, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in TABLES.split(";"):
            connection.exec_driver_sql(statement)
        if address.username:
            connection.exec_driver_sql("CREATE SEQUENCE counter")
    engine.dispose()


def test_an_omop_cohort_gives_the_same_records_from_either_database(cohort: tuple[Path, Sql]) -> None:
    for _ in range(2):
        inputs, targets = read(*cohort, Diabetes())
        rows = [[*one, *other] for one, other in zip(inputs.tolist(), targets.tolist(), strict=True)]
        assert rows == [pytest.approx(row, abs=1e-2) for row in EXPECTED]


def test_a_null_is_a_missing_value_or_a_problem_with_row_and_column(cohort: tuple[Path, Sql]) -> None:
    path, options = cohort
    path.write_text(QUERY.replace(" ELSE 'unknown'", ""))
    assert problems(path, options, Diabetes()) == [
        f"cohort.sql, row {row}, column `sex`: no value; fill it in, or leave the record out" for row in (2, 4)
    ]


def test_nothing_is_ever_written(cohort: tuple[Path, Sql]) -> None:
    path, options = cohort
    for query in (
        "DELETE FROM person RETURNING person_id",
        "WITH gone AS (DELETE FROM person RETURNING person_id) SELECT * FROM gone",
        "SELECT person_id FROM person) x; DELETE FROM person; SELECT * FROM (SELECT 1",
        "DROP TABLE person",
    ):
        path.write_text(query)
        assert complaint(path, options).startswith("cohort.sql: the database refuses the query (")
    if "postgresql" in options.url:
        path.write_text(QUERY.replace("p.year_of_birth,", "nextval('counter') AS year_of_birth,"))
        message = complaint(path, options, Diabetes())
        assert message.endswith("the database refuses the query (ReadOnlySqlTransaction); run it there to see why")
    path.write_text(QUERY)
    assert len(read(path, options, Diabetes())[0]) == 4


def test_errors_of_the_database_are_named_without_their_text(cohort: tuple[Path, Sql]) -> None:
    path, options = cohort
    path.write_text("SELECT person_id, CAST(note AS INTEGER) AS age FROM person")
    message = complaint(path, options)
    assert "Smith" not in message
    if "postgresql" in options.url:
        assert message == (
            "cohort.sql: the database refuses the query (InvalidTextRepresentation); run it there to see why"
        )


def test_rows_whose_order_is_not_fixed_are_refused(cohort: tuple[Path, Sql]) -> None:
    path, options = cohort
    advice = "order_by in [data.source] must be different in every row, so that records keep their places"
    by_sex = Sql(url=options.url, order_by="sex")
    assert complaint(path, by_sex, Diabetes()) == (f"cohort.sql: row 4 has the same `sex` as the one before; {advice}")
    path.write_text("SELECT person_id, NULL AS hba1c FROM person".replace("person_id", "year_of_birth, person_id"))
    with pytest.raises(DataError, match="there is no column `sex`"):
        Diabetes().load_from(Source(path, options))
    path.write_text(QUERY.replace("ELSE 'unknown'", ""))
    assert "has no `sex`" in complaint(path, by_sex, Diabetes()) or "has the same" in complaint(
        path, by_sex, Diabetes()
    )
    path.write_text("SELECT person_id, year_of_birth, year_of_birth FROM person")
    assert "columns 2 and 3 have the same name" in complaint(path, options, Diabetes())
    path.write_text(QUERY.replace("FROM person p", "FROM person p WHERE FALSE"))
    assert (
        complaint(path, options, Diabetes())
        == "cohort.sql: the query returns no rows; correct it, or fill the database's tables"
    )


def test_the_password_comes_from_the_environment_and_is_never_shown(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cohort.sql"
    path.write_text(QUERY)
    monkeypatch.setenv("CLOISTER_SQL_PASSWORD", "wrong-one")
    message = complaint(path, Sql(url=server, order_by="person_id"))
    assert message == (
        "cohort.sql: the database cannot be reached (OperationalError); check url in [data.source], the password in "
        "CLOISTER_SQL_PASSWORD, and the network"
    )
    monkeypatch.setenv("OWN_VARIABLE", PASSWORD)
    own = Sql(url=server, order_by="person_id", password_variable="OWN_VARIABLE")  # noqa: S106 - a variable's name
    assert len(read(path, own, Diabetes())[0]) == 4
    message = complaint(path, Sql(url=server.replace("owner@", "owner:geheim@"), order_by="person_id"))
    assert message == (
        "cohort.sql: url in [data.source] contains a password; remove it, and set the environment variable "
        "CLOISTER_SQL_PASSWORD"
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("omop.db", "url in [data.source] is not one that SQLAlchemy reads; write for example postgresql+psycopg://"),
        ("sqlite:///nowhere.db", "there is no file of the SQLite database; correct url in [data.source]"),
        ("sqlite://", "there is no file of the SQLite database"),
        ("mysql+pymysql://db.example.org/omop", "the driver of url in [data.source] is not installed; pip install"),
        ("postgresql+psycopg://owner@127.0.0.1:1/omop", "the database cannot be reached (OperationalError)"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(tmp_path: Path, url: str, message: str) -> None:
    (tmp_path / "cohort.sql").write_text(QUERY)
    assert message in complaint(tmp_path / "cohort.sql", Sql(url=url, order_by="person_id"))


def test_the_query_must_be_there(tmp_path: Path) -> None:
    fill(f"sqlite:///{tmp_path}/omop.db")
    path, options = tmp_path / "cohort.sql", Sql(url="sqlite:///omop.db", order_by="person_id")
    assert "no such file or directory; name a text file with one SELECT" in complaint(path, options)
    path.write_bytes(b"\xff")
    assert "not UTF-8 text" in complaint(path, options)
    path.write_bytes(b" ;\n")
    assert "the file is empty; write one SELECT in it" in complaint(path, options)


def test_truth_values_decimals_and_nan_are_read_and_other_types_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_SQL_PASSWORD", PASSWORD)
    path, options = tmp_path / "cohort.sql", Sql(url=server, order_by="person_id")
    kinds = QUERY.replace("p.year_of_birth,", "p.year_of_birth::numeric(12, 4),").replace(
        "(SELECT m.value_as_number", "CASE p.person_id WHEN 1 THEN {} END AS hba1c, (SELECT m.value_as_number"
    )
    kinds = kinds.replace("LIMIT 1) AS hba1c", "LIMIT 1) AS other")
    for value, expected in {"'NaN'::numeric": -0.5, "'NaN'::float8": -0.5, "9::numeric": 0, "9::real": 0}.items():
        path.write_text(kinds.format(value))
        inputs, targets = read(path, options, Diabetes())
        assert inputs[:, 4].tolist() == [expected, -0.5, -0.5, -0.5], value
        assert targets[:, 0].tolist() == [0, 0, 1, 0]
    for value, message in {
        "'infinity'::float8": "not finite; write the measured value",
        "interval '1 day'": "not a number but of type duration[us]",
        "ARRAY[9.0]": "not a number but a list or structure",
        "jsonb_build_object('a', 9)": "not a number but a list or structure",
        "'9 mmol'": "not a number; write it as 1234.5",
        "'\\x39'::bytea": "not a number but of type binary",
    }.items():
        path.write_text(kinds.format(value))
        assert complaint(path, options, Diabetes()).startswith(f"cohort.sql, row 1, column `hba1c`: {message}"), value
    path.write_text(QUERY.replace("(SELECT MAX(m.measurement_date) FROM", "(SELECT 'infinity'::date FROM"))
    assert complaint(path, options, Diabetes()).startswith("cohort.sql: the database refuses the query (")


@pytest.mark.parametrize("other", [f"'{SECRET}'", "X'313940'"])
def test_values_of_mixed_types_which_sqlite_allows_are_read_as_texts(tmp_path: Path, other: str) -> None:
    fill(f"sqlite:///{tmp_path}/omop.db")
    mixed = f"CASE p.person_id WHEN 1 THEN '1940' WHEN 2 THEN {other} ELSE 1960 END AS year_of_birth,"
    (tmp_path / "cohort.sql").write_text(QUERY.replace("p.year_of_birth,", mixed) + "; -- of 2024\n-- end")
    listed = problems(tmp_path / "cohort.sql", Sql(url="sqlite:///omop.db", order_by="person_id"), Diabetes())
    assert [problem.partition(";")[0] for problem in listed] == [
        "cohort.sql, row 2, column `year_of_birth`: not a number"
    ]
