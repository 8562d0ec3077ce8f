"""The argument language: what each spelling means, and that nothing makes it fall over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from durable_cli.arguments import parse_arguments, parse_value, parse_word
from durable_cli.problems import Problem
from hypothesis import given
from hypothesis import strategies as st

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True)


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("WORLD", None, "WORLD"),
        ("", None, ""),
        ("3", None, "3"),
        ("true", None, "true"),
        ("n=3", "n", "3"),
        ("n=", "n", ""),
        ("n==3", "n", "=3"),
        ("n=a:=b", "n", "a:=b"),
        ("n=@x", "n", "@x"),
        ("n:=3", "n", 3),
        ('opts:={"a":1}', "opts", {"a": 1}),
        (":=3", None, 3),
        (':="a=b"', None, "a=b"),
        ("=x", None, "=x"),
        ("https://x?y=1", None, "https://x?y=1"),
        ("a-b=c", None, "a-b=c"),
        ("2x=c", None, "2x=c"),
        ("größe:=1", "größe", 1),
        ("text=two\nlines", "text", "two\nlines"),
    ],
)
def test_each_spelling_has_one_meaning(word: str, name: str | None, value: Any) -> None:
    """Bare and = are text, := is JSON."""
    assert parse_word(word) == (name, value)


def test_a_file_is_json_by_its_name_and_text_otherwise(tmp_path: Path) -> None:
    """@file by position, name:=@file by name."""
    as_json, as_text = tmp_path / "order.json", tmp_path / "order.txt"
    as_json.write_text('{"n": 1}')
    as_text.write_text("3")

    assert parse_word(f"@{as_json}") == (None, {"n": 1})
    assert parse_word(f"@{as_text}") == (None, "3")
    assert parse_word(f"n:=@{as_text}") == ("n", 3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["n:=x"], "no JSON after n:="),
        (["n:=NaN"], "NaN is not JSON"),
        (["n:=" + "[" * 100_000], "no JSON"),
        (['n:="\\ud800"'], "no JSON"),
        (["n=1", "n=2"], "given twice"),
        (["n=1", "two"], "follows a named argument"),
        (["@nothing-here.json"], "cannot read"),
        (["\udcff"], "not valid UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], complaint: str) -> None:
    """A usage error says what is wrong with it."""
    with pytest.raises(Problem, match=complaint):
        parse_arguments(words)


def test_json_gives_all_arguments_at_once() -> None:
    """An array by position, an object by name, - from standard input; not together with words."""
    assert parse_arguments([], "[1, 2]") == ([1, 2], {})
    assert parse_arguments([], '{"a": 1}') == ([], {"a": 1})
    assert parse_arguments([], "-", read_stdin=lambda: '["x"]') == (["x"], {})
    for words, whole in ((["x"], "[]"), ([], "3"), ([], "{")):
        with pytest.raises(Problem):
            parse_arguments(words, whole)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["true"], True),
        (["3"], 3),
        (["null"], None),
        (["NaN"], "NaN"),
        (["yes please"], "yes please"),
        (['{"by": "ann"}'], {"by": "ann"}),
        ([':="3"'], "3"),
        (["by=ann", "ok:=true"], {"by": "ann", "ok": True}),
    ],
)
def test_a_signal_carries_one_value(words: list[str], value: Any) -> None:
    """`durable signal order-7 approved true` sends a boolean; named words make an object."""
    assert parse_value(words) == value


def test_a_signal_refuses_several_values() -> None:
    """Rather than send half of them."""
    for words in (["a", "b"], ["a", "b=c"]):
        with pytest.raises(Problem, match="one value"):
            parse_value(words)


@given(names, json_values)
def test_every_json_value_arrives_as_it_was_typed(name: str, value: Any) -> None:
    """By name, by position, whole and as a signal's value."""
    text = json.dumps(value)

    assert parse_word(f"{name}:={text}") == (name, value)
    assert parse_word(f":={text}") == (None, value)
    assert parse_arguments([], f"[{text}]").positional == [value]
    assert parse_value([], text) == value


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_text_by_name_is_never_interpreted(text: str) -> None:
    """name=text is the way to pass anything."""
    assert parse_word(f"name={text}") == ("name", text)


@given(st.lists(st.text(), max_size=4))
def test_no_words_bring_it_down(words: list[str]) -> None:
    """Whatever is typed is arguments or a usage error."""
    try:
        given_ = parse_arguments(words)
    except Problem:
        return
    assert len(given_.positional) + len(given_.named) == len(words)
