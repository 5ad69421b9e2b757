"""Every mistake in a settings file is one sentence, at the place where it stands."""

from __future__ import annotations

import contextlib
from dataclasses import field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, read_toml, settings_file
from privacy.errors import ConfigError
from privacy.run.settings import RunSettings
from tests.privacy.consortium import relaxed


@dataclass(frozen=True, config=STRICT)
class Inner:
    rounds: Annotated[int, Field(ge=1)]
    share: float = 0.5
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.rounds == 13:
            msg = "thirteen rounds bring bad luck"
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT)
class Outer:
    name: str
    training: Inner
    sizes: dict[str, int] = field(default_factory=dict)
    deeper: Inner | None = None
    names: tuple[str, ...] = ()


def read(text: str | bytes, into: type[Any] = Outer) -> object:
    with TemporaryDirectory() as folder:
        path = Path(folder, "study.toml")
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        try:
            return read_toml(path, into)
        except ConfigError as error:
            # The caret stands under what is shown, so cutting the folder must keep it there.
            message = str(error).replace(f"{folder}/", "")
            first, _, second = message.partition("\n")
            raise ConfigError(first + (f"\n{second[len(folder) + 1 :]}" if second else "")) from error


def complaint(text: str | bytes, into: type[Any] = Outer) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, into)
    return str(caught.value).splitlines()


GOOD = """\
name = "study"          # of the run
names = ["a", "b"]

[training]
rounds = 3

[sizes]
north = 10
"quoted" = 20
"""


def test_a_good_file_is_read() -> None:
    assert read(GOOD) == Outer(
        name="study", training=Inner(rounds=3), sizes={"north": 10, "quoted": 20}, names=("a", "b")
    )


def test_an_unknown_key_is_shown_with_its_line_and_a_suggestion() -> None:
    text = "# a study\n" * 6 + "rouns = 20\n"
    lines = complaint(text, RunSettings)
    assert lines == [
        "study.toml:7  rouns = 20",
        "              ^^^^^ unknown key; did you mean `rounds`?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            'name = "s"\n[training]\nrounds = 3\n  shares = 0.5\n',
            ["study.toml:4    shares = 0.5", "                ^^^^^^ unknown key; did you mean `share`?"],
            id="unknown key in a table, indented",
        ),
        pytest.param(
            'name = "s"\nxyz = 1\n[training]\nrounds = 3\n',
            ["study.toml:2  xyz = 1", "              ^^^ unknown key; remove it"],
            id="unknown key like no other",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = 3\n[trainin]\n',
            ["study.toml:4  [trainin]", "               ^^^^^^^ unknown key; did you mean `training`?"],
            id="unknown table",
        ),
        pytest.param(
            'name = "s"\ntraining.round = 3\n',
            ["study.toml:2  training.round = 3", "              ^^^^^ unknown key; did you mean `rounds`?"],
            id="unknown dotted key, rather than the missing one",
        ),
        pytest.param("[training]\nrounds = 3\n", ["study.toml: the key `name` is missing; add it"], id="missing key"),
        pytest.param(
            'name = "s"\n[training]\n',
            ["study.toml: the key `rounds` is missing in [training]; add it"],
            id="missing key in a table",
        ),
        pytest.param('name = "s"\n', ["study.toml: the key `training` is missing; add it"], id="missing table"),
        pytest.param("", ["study.toml: the key `name` is missing; add it"], id="empty file"),
        pytest.param(
            "name = 7\n[training]\nrounds = 3\n",
            ["study.toml:1  name = 7", "              ^^^^ must be a valid string"],
            id="wrong type",
        ),
        pytest.param(
            "name = 2024-01-01\n[training]\nrounds = 3\n",
            ["study.toml:1  name = 2024-01-01", "              ^^^^ must be a valid string"],
            id="a date for a text",
        ),
        pytest.param(
            'name = "a\x1b[2J"\n[training]\nrounds = 3\n',
            ['study.toml:1  name = "a·[2J"', "                       ^ not valid TOML: illegal character '\\x1b'"],
            id="an escape, which does not reach the terminal",
        ),
        pytest.param(
            "rouns = " + "1" * 500 + "\n",
            ["study.toml:1  rouns = " + "1" * 112, "              ^^^^^ unknown key; remove it"],
            id="a long line",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = "3"\n',
            ['study.toml:3  rounds = "3"', "              ^^^^^^ must be a valid integer"],
            id="a number as text",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = true\n',
            ["study.toml:3  rounds = true", "              ^^^^^^ must be a valid integer"],
            id="truth as a number",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = 0\n',
            ["study.toml:3  rounds = 0", "              ^^^^^^ must be greater than or equal to 1"],
            id="wrong value",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = 3\nmode = "mid"\n',
            ['study.toml:4  mode = "mid"', "              ^^^^ must be 'fast' or 'slow'"],
            id="none of the choices",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = 13\n',
            ["study.toml:2  [training]", "               ^^^^^^^^ thirteen rounds bring bad luck"],
            id="a rule of ours",
        ),
        pytest.param(
            'name = "s"\n[training]\nrounds = 3\n[sizes]\n"north" = "x"\n',
            ['study.toml:5  "north" = "x"', "              ^^^^^ must be a valid integer"],
            id="a value under a free key",
        ),
        pytest.param(
            'name = "s"\n\n[training\nrounds = 3\n',
            [
                "study.toml:3  [training",
                "                       ^ not valid TOML: expected ']' at the end of a table declaration",
            ],
            id="bad TOML in the middle",
        ),
        pytest.param(
            'name = "s"\nname = "t"\n',
            ['study.toml:2  name = "t"', "                        ^ not valid TOML: cannot overwrite a value"],
            id="a key twice",
        ),
        pytest.param(
            'name = "s"\nnames = [',
            ["study.toml:2  names = [", "              ^ not valid TOML: invalid value"],
            id="bad TOML at the end",
        ),
    ],
)
def test_each_mistake_is_shown_at_its_place(text: str, expected: list[str]) -> None:
    assert complaint(text) == expected


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            read_toml(path, Outer)
        assert str(caught.value) == f"{path}: {reason}; name an existing settings file"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_is_not_part_of_the_text(end: str) -> None:
    text = end.join(['\ufeffname = "s"', "[training]", "rounds = 3", ""])
    assert read(text) == Outer("s", Inner(3))
    output = complaint(text.replace("rounds", "rouns"))
    assert output == ["study.toml:3  rouns = 3", "              ^^^^^ unknown key; did you mean `rounds`?"]


@pytest.mark.parametrize("data", [b'name = "\xff"', "name = 1".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_refused(data: bytes) -> None:
    assert complaint(data) == ["study.toml:1: not UTF-8 text; save the file as UTF-8"]


@pytest.mark.parametrize("text", ["name = " + "[" * 50_000, "a = " + "{a=" * 5_000])
def test_a_file_that_is_nested_too_deeply_is_refused(text: str) -> None:
    assert complaint(text) == ["study.toml: nested too deeply for a settings file; settings have two levels at most"]


def test_keys_with_hundreds_of_parts_are_refused() -> None:
    for parts in (300, 3_000):
        (line, *_) = complaint("a." * parts + "a = 1")
        assert "too deep" in line or "recursion limit" in line


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    (line,) = complaint("name = " + "9" * 5_000)
    assert line.startswith("study.toml: Exceeds the limit (4300 digits)")
    assert line.endswith("; write a smaller number")


KEYS = st.sampled_from(["name", "training", "training.rounds", "rounds", "sizes", "names", "deeper", '"name"', "x.y"])
VALUES = st.sampled_from(
    [
        "1",
        "-1",
        "nan",
        "inf",
        "1e400",
        '"s"',
        "true",
        "[]",
        "{}",
        "[1, [2]]",
        "{rounds = 1}",
        "1979-05-27",
        "0x10",
        "''",
        "",
    ]
)
LINES = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES),
    st.sampled_from(
        ["[training]", "[[training]]", "[sizes]", "[deeper.x]", "[x]", "rounds = 3", "# \u2028", "\r", "[", "x"]
    ),
)


@relaxed
@given(st.text(max_size=60) | st.binary(max_size=60) | st.lists(LINES, max_size=6).map("\n".join))
@example("\ufeffname = 1")
@example("[training]\u2028\nrounds = 0")
@example("training = 3")
@example("[[training]]")
@example("name = 1\x00")
def test_any_text_is_read_or_refused_with_our_error(text: str | bytes) -> None:
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    with contextlib.suppress(ConfigError):
        assert isinstance(read(text), Outer)


# --- Links ----------------------------------------------------------------------------------------------------------


def test_files_beside_the_settings_stay_in_place_when_a_link_to_the_settings_changes(tmp_path: Path) -> None:
    for release in ("release-1", "release-2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "site.toml").touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "site.toml").symlink_to("../current/site.toml")
    for release in ("release-1", "release-2"):
        (tmp_path / "current").unlink(missing_ok=True)
        (tmp_path / "current").symlink_to(release)
        for path in (tmp_path / "site", tmp_path / "site" / "site.toml"):
            assert settings_file(path, "site.toml") == tmp_path / "site" / "site.toml"


@pytest.mark.parametrize("below", [".", "north"])
def test_a_linked_folder_is_refused_because_new_ledgers_could_replace_the_old_ones(tmp_path: Path, below: str) -> None:
    (tmp_path / "release-1" / below).mkdir(parents=True)
    (tmp_path / "release-1" / below / "site.toml").touch()
    (tmp_path / "current").symlink_to("release-1")
    for path in (tmp_path / "current" / below, tmp_path / "current" / below / "site.toml"):
        with pytest.raises(ConfigError, match=r"current is a link.*release-1.*or link only site\.toml itself"):
            settings_file(path, "site.toml")
