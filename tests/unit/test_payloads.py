"""Values to stored bytes and back, by type hint."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import math
import re
import sys
import types
import uuid
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypedDict,
    TypeVar,
    Unpack,
)

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.errors import ArgumentsError, DefinitionError, PayloadError, UndecodableError
from durable.limits import DEPTH_MAX
from durable.payloads import Arguments, ValueType
from durable.result import Err, Ok, Result


def named(value: object) -> str:
    """Return a parameter's name: the same in every process, whatever its address and the order of its set."""
    if isinstance(value, set | frozenset):
        return str(sorted(map(str, value)))[:40]
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:40]


@dataclasses.dataclass
class Card:
    number: str


@dataclasses.dataclass
class Transfer:
    iban: str


@dataclasses.dataclass
class GoldCard(Card):
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Kilo(msgspec.Struct):
    grams: int


class Pound(msgspec.Struct, rename="camel"):
    fluid_ounces: int


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class Address(pydantic.BaseModel):
    street: str
    since: dt.datetime
    lines: list[str] = []


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Row(NamedTuple):
    id: int
    paid: Card | Transfer


class Extra(TypedDict):
    note: str
    paid: NotRequired[Card | Transfer]


class Spot(TypedDict):
    at: Point
    note: NotRequired[str]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Odd(enum.Enum):
    PAIR = (1, 2)
    HALF = 0.5


class UserId(str):
    pass


T = TypeVar("T")
OrderId = NewType("OrderId", int)


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]


@dataclasses.dataclass
class Order:
    id: OrderId
    paid: Card | Transfer | None
    ship_to: Address | None
    prices: dict[int, decimal.Decimal]
    checked: Result[Point, str]
    parts: list[Order] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Later:
    kids: list[DefinedLater]


LATER = ValueType.of(Later)


@dataclasses.dataclass
class DefinedLater:
    x: int


SINCE = dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC)
ADDRESS = Address(street="Elm", since=SINCE)
ORDER = Order(
    OrderId(7),
    Transfer("NL00"),
    ADDRESS,
    {10: decimal.Decimal("1.50"), 9: decimal.Decimal("2")},
    Ok(Point(1, 2)),
    [Order(OrderId(8), None, None, {}, Err("stale"))],
)


def through(hint: Any, value: object) -> Any:
    value_type = ValueType.of(hint)
    data = value_type.encode(value)
    assert data == ValueType.of(hint).encode(value)
    return value_type.decode(memoryview(data))


# ─ round trips ───────────────────────────────────────────────────────────────

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (str, "é\u0000\U0001f600"),
    (int, 2**100),
    (int, -(2**63) - 1),
    (float, 1e300),
    (bool, True),
    (None, None),
    (bytes, b"\x00\xff"),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (set[str], {"a", "b"}),
    (frozenset[Point], frozenset([Point(1), Point(2)])),
    (set[Colour], {Colour.RED, Colour.BLUE}),
    (Sequence[Card | Transfer], [Card("1")]),
    (Mapping[str, int], {"a": 1}),
    (dt.datetime, SINCE),
    (dt.datetime, dt.datetime(2024, 2, 29, 1)),
    (dt.date, SINCE.date()),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-1, microseconds=1)),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (uuid.UUID, uuid.UUID(int=5)),
    (Colour, Colour.RED),
    (Level, Level.HIGH),
    (Odd, Odd.PAIR),
    (list[Odd], [Odd.HALF, Odd.PAIR]),
    (Literal["a", 1], 1),
    (int | None, None),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (OrderId, 3),
    (UserId, UserId("u")),
    (dict[UserId, list[UserId]], {UserId("u"): [UserId("v")]}),
    (Point, Point(1, 2)),
    (Kilo, Kilo(5)),
    (Cat | Dog, Dog("Rex")),
    (Address, ADDRESS),
    (list[Address], [ADDRESS]),
    (dict[str, Address], {"home": ADDRESS}),
    (Numbers, Numbers([1, 2])),
    (Page[int], Page([1])),
    (Page[Card | Transfer], Page([Card("1"), Transfer("2")])),
    (Row, Row(1, Transfer("x"))),
    (Extra, {"note": "n"}),
    (Spot, {"at": Point(1)}),
    (Extra, {"note": "n", "paid": Card("1")}),
    (Order, ORDER),
    (Order | None, ORDER),
    (dict[int, str], {10: "a", 9: "b"}),
    (dict[int, str], {}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[uuid.UUID, Card | Transfer], {uuid.UUID(int=3): Card("1")}),
    (dict[dt.date, float], {SINCE.date(): 1.5}),
]


@pytest.mark.parametrize(("hint", "value"), ROUND_TRIPS, ids=named)
def test_a_value_comes_back_as_its_hint_says(hint: Any, value: object) -> None:
    """Equal, and of the same class."""
    back = through(hint, value)

    assert back == value
    assert type(back) is type(value)


AMBIGUOUS: list[tuple[Any, Any]] = [
    (Card | Transfer, Card("1")),
    (Card | Transfer, Transfer("1")),
    (Card | GoldCard, GoldCard("1", 5)),
    (Card | GoldCard, Card("1")),
    (Card | Transfer | None, None),
    (Card | Address, ADDRESS),
    (Card | Numbers, Numbers([1])),
    (Kilo | Pound, Pound(3)),
    (Cat | Card | Pound, Cat("Tom")),
    (str | dt.date, "2024-02-29"),
    (str | dt.date, SINCE.date()),
    (dt.date | dt.datetime, SINCE),
    (dt.date | dt.datetime, SINCE.date()),
    (str | bytes, b"ab"),
    (str | decimal.Decimal, decimal.Decimal("1.0")),
    (str | Colour, Colour.RED),
    (list[int] | set[int], {1, 2}),
    (list[int] | tuple[int, ...], (1, 2)),
    (Card | dict[str, int], {"$type": 1}),
    (Card | dict[str, str], {"number": "1"}),
    (list[Card] | Card | Transfer, [Card("1")]),
    (list[Card] | list[Transfer], [Transfer("1")]),
    (Page[Card] | Page[Transfer], Page([Transfer("1")])),
    (int | float | bool | Card | Transfer, True),
    (int | float | Card | Transfer, 1),
    (int | float | Card | Transfer, 1.0),
    (Level | int, 7),
    (Level | int, Level.LOW),
    (UserId | int, UserId("u")),
    (dict[str, Card | Transfer], {"a": Transfer("1")}),
    (Result[int, str] | None, None),
    (Result[int, str] | None, Err("no")),
    (Result[Card, str] | Card, Card("1")),
    (Result[Card, str] | Card, Ok(Card("1"))),
]


@pytest.mark.parametrize(("hint", "value"), AMBIGUOUS, ids=named)
def test_members_of_a_union_that_look_alike_are_told_apart(hint: Any, value: object) -> None:
    """Their name is stored where JSON alone does not tell."""
    back = through(hint, value)

    assert back == value
    assert type(back) is type(value)


def test_the_name_of_a_member_is_stored_in_its_object() -> None:
    """Readable in the database, and looked up among the hint's members only."""
    assert ValueType.of(Card | Transfer).encode(Card("1")) == b'{"$type":"Card","number":"1"}'
    assert ValueType.of(str | dt.date).encode(SINCE.date()) == b'{"$type":"date","value":"2024-02-29"}'
    with pytest.raises(UndecodableError, match="'Card' or 'Transfer'"):
        ValueType.of(Card | Transfer).decode(b'{"$type":"GoldCard","number":"1"}')


def test_a_value_of_no_member_is_refused() -> None:
    """It could not be told apart when it is read."""
    with pytest.raises(PayloadError, match=r"expected `Card \| Transfer`, got `int`"):
        ValueType.of(Card | Transfer).encode(3)


def test_equal_inputs_give_equal_bytes() -> None:
    """So that an input can be compared with a recorded one."""
    assert through(Any, {"b": 1, "a": 2}) == {"a": 2, "b": 1}
    for hint in (Any, dict[str, Any], dict[str, Card | int]):
        value_type = ValueType.of(hint)
        assert value_type.encode({"b": 1, "a": 2}) == value_type.encode({"a": 2, "b": 1}) == b'{"a":2,"b":1}'
    points = ValueType.of(set[Point])
    assert points.encode({Point(1), Point(2)}) == points.encode({Point(2), Point(1)})
    assert ValueType.of(dict[int, int]).encode({2: 1, 10: 1}) == ValueType.of(dict[int, int]).encode(
        {10: 1, 2: 1}
    )


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Point, Point(1)),
        (list[Point], [Point(1)]),
        (Point | None, Point(1)),
        (dict[str, Point], {"a": Point(1)}),
        (Spot, {"at": Point(1)}),
        (Spot | None, {"at": Point(1)}),
        (dict[int, Point], {3: Point(1)}),
        (tuple[Point, int], (Point(1), 2)),
        (Page[Point], Page([Point(1)])),
        (list[Point | str], ["a", Point(1)]),
        (list[Point | Card], [Card("a"), Point(1)]),
    ],
    ids=named,
)
def test_a_field_at_its_default_is_stored(hint: Any, value: object) -> None:
    """Also of an object that was itself read without it: tomorrow's default is not what was meant."""
    value_type = ValueType.of(hint)
    full = value_type.encode(value)
    sparse = full.replace(b',"y":0', b"")

    assert sparse != full
    assert value_type.encode(value_type.decode(sparse)) == full


def test_without_a_hint_values_are_plain_json() -> None:
    """Tuples come back as lists, dataclasses and models as dicts; the hint is what gives them back."""
    value = (1, Point(1), Kilo(2), ADDRESS, Ok(Colour.RED), UserId("u"))

    back = through(Any, value)

    assert back == [
        1,
        {"x": 1, "y": 0},
        {"grams": 2},
        {"street": "Elm", "since": "2024-02-29T12:30:00Z", "lines": []},
        {"ok": "red"},
        "u",
    ]


def test_an_exception_in_an_err_is_stored_as_a_failure() -> None:
    """And rebuilt as its own class, whatever the other type parameters say."""
    for hint in (
        Result[int, ValueError],
        Result[int, Exception | str],
        Result[int, str],
        Result,
        Err[KeyError],
    ):
        back = through(hint, Err(ValueError("no stock")))

        assert isinstance(back, Err)
        assert type(back.error) is ValueError
        assert str(back.error) == "no stock"
    assert through(Result[int, Exception | str], Err("plain")) == Err("plain")


def test_an_exception_is_a_value_where_a_hint_says_so() -> None:
    """E.g. the parameter of an activity that reports errors."""
    back = through(list[Exception], [KeyError("a")])

    assert type(back[0]) is KeyError
    assert str(back[0]) == "'a'"


def test_a_class_may_be_defined_after_its_use_in_a_hint() -> None:
    """Names are looked up at the first use."""
    assert LATER.decode(LATER.encode(Later([DefinedLater(1)]))) == Later([DefinedLater(1)])


if sys.version_info >= (3, 12):

    def test_a_type_alias_may_refer_to_itself() -> None:
        """`type Tree = ...` as in PEP 695."""
        namespace: dict[str, Any] = {}
        source = "type Tree = dict[str, Tree] | list[Tree] | int\ntype Many[T] = list[T]"
        exec(source, namespace)  # noqa: S102 - 3.11 could not parse this file otherwise
        Tree, Many = namespace["Tree"], namespace["Many"]

        assert through(Tree, {"a": [1, {"b": 2}]}) == {"a": [1, {"b": 2}]}
        assert through(Many[Point], [Point(1)]) == [Point(1)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_any_json_round_trips_without_a_hint(value: Any) -> None:
    """Bit by bit: integers of any size, floats exactly, any text."""
    back = through(Any, value)

    assert json.dumps(back, sort_keys=True) == json.dumps(value, sort_keys=True)


@given(
    st.one_of(
        [
            st.tuples(st.just(hint), strategy)
            for hint, strategy in [
                (dt.timedelta, st.timedeltas()),
                (dt.datetime, st.datetimes()),
                (dt.datetime, st.datetimes(timezones=st.just(dt.UTC))),
                (dt.date, st.dates()),
                (dt.time, st.times()),
                (decimal.Decimal, st.decimals(allow_nan=False)),
                (uuid.UUID, st.uuids()),
                (bytes, st.binary()),
                (dict[int, int], st.dictionaries(st.integers(), st.integers())),
                (
                    dict[float, int],
                    st.dictionaries(st.floats(allow_nan=False, allow_infinity=False), st.integers()),
                ),
                (dict[bytes, int], st.dictionaries(st.binary(), st.integers())),
                (frozenset[tuple[int, str]], st.frozensets(st.tuples(st.integers(), st.text()))),
                (set[int] | list[int], st.sets(st.integers()) | st.lists(st.integers())),
                (
                    Result[int | str, float],
                    st.builds(Ok, st.integers() | st.text())
                    | st.builds(Err, st.floats(allow_nan=False, allow_infinity=False)),
                ),
                (
                    list[Card | Transfer | Point | str | None],
                    st.lists(
                        st.builds(Card, st.text())
                        | st.builds(Transfer, st.text())
                        | st.builds(Point, st.integers())
                        | st.text()
                        | st.none()
                    ),
                ),
            ]
        ]
    )
)
def test_hinted_values_round_trip(case: tuple[Any, Any]) -> None:
    """Whatever the value, what comes back is equal."""
    hint, value = case

    assert through(hint, value) == value


# ─ refusals when writing ─────────────────────────────────────────────────────


class Opaque:
    pass


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(100_000), [])


@pytest.mark.parametrize(
    ("hint", "value", "path", "message"),
    [
        (Any, {"order": {"items": [1, 2, 3, Opaque()]}}, "$.order.items[3]", "Opaque` cannot be stored"),
        (Any, {"a b": [print]}, "$['a b'][0]", "builtin_function_or_method"),
        (Any, (i for i in "ab"), "$", "generator"),
        (Point, Point(Opaque()), "$.x", "Opaque"),  # type: ignore[arg-type]
        (Any, Kilo(Opaque()), "$.grams", "Opaque"),  # type: ignore[arg-type]
        (Any, Ok([Opaque()]), "$.ok[0]", "Opaque"),
        (float, math.nan, "$", "float nan"),
        (int, math.nan, "$", "float nan"),
        (Any, [1, None, {"a": math.inf}], "$[2].a", "float inf"),
        (Any, {"a": None, "b": -math.inf}, "$.b", "float -inf"),
        (Page[float], Page([1.0, math.nan]), "$.items[1]", "float nan"),
        (dict[int, float], {3: math.nan}, "$[3]", "float nan"),
        (Card | Transfer, Card(math.nan), "$.number", "float nan"),  # type: ignore[arg-type]
        (Any, ["ok", "\ud800"], "$[1]", "lone surrogate at position 0"),
        (Any, {"a": {"x\udfff": 1}}, "$.a", "lone surrogate at position 1"),
        (Any, [CYCLE], "$", "contains itself"),
        (Any, DEEP, "$", "nested too deeply"),
        (Any, [10**5000], "$[0]", "so many digits"),
        (Any, {"a": {1: 2}}, "$.a", "key of type `int`"),
        (Any, {None: 1}, "$", "key of type `NoneType`"),
        (dict[str, Any], {("a", 1): 1}, "$", "key of type `tuple`"),
        (dict[int, int], {"1": 1}, "$", "would not come back as `int`"),
        (dict[int | str, int], {1: 1}, "$", "would not come back"),
        (dict[Colour, int], {Level.LOW: 1}, "$", "would not come back as `Colour`"),
        (Result[int, str], 3, "$", r"expected `Union\[Ok\[int\], Err\[str\]\]`|expected `Ok"),
        (list[Order], [ORDER, dataclasses.replace(ORDER, checked=Ok(Opaque()))], "$[1].checked.ok", "Opaque"),
        (Address, Address.model_construct(street=Opaque(), since=SINCE), "$", "Address` cannot be stored"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_what_cannot_be_stored_is_refused_with_its_path(
    hint: Any, value: object, path: str, message: str
) -> None:
    """At the call, never at recovery; the text says what to do."""
    with pytest.raises(PayloadError, match=message) as caught:
        ValueType.of(hint).encode(value)

    assert caught.value.path == path


def test_none_is_no_nan() -> None:
    """Both are written as null by msgspec, so only the value tells."""
    assert through(Any, None) is None
    assert through(Any, [None, "null", 1.5, "\u02ff\uf7ff"]) == [None, "null", 1.5, "\u02ff\uf7ff"]
    assert through(Any, [None, 2**70]) == [None, 2**70]


def nested(depth: int, inside: str = "") -> Any:
    """Return arrays and objects in turn, so many levels deep, with a text beside each."""
    value: Any = []
    for level in range(depth - 1):
        value = [inside, value] if level % 2 else {"a": value, "b": inside}
    return value


@pytest.mark.parametrize("inside", ["", "]" * 9, "[{" * 200, '\\"]', "\\", '\\\\"[', "\n\u2028"])
def test_a_value_nested_too_deeply_is_refused(inside: str) -> None:
    """At the call: whoever reads it must not run out of stack. Brackets within texts do not count."""
    deepest = nested(DEPTH_MAX, inside)

    assert through(Any, deepest) == deepest
    for value_type in (ValueType.of(Any), ValueType.of(object)):
        with pytest.raises(PayloadError, match="nested more than 256 levels deep"):
            value_type.encode(nested(DEPTH_MAX + 1, inside))
    with pytest.raises(PayloadError, match="nested"):
        Arguments.of(lambda x: x).encode((deepest,), {})


def test_a_wide_value_is_not_a_deep_one() -> None:
    """Thousands of small objects."""
    wide = [{"at": [i, {}], "text": "]["} for i in range(3000)]

    assert through(Any, wide) == wide


def test_a_value_far_too_deep_is_refused_as_well() -> None:
    """Whether msgspec or we notice."""
    with pytest.raises(PayloadError, match="nested"):
        ValueType.of(Any).encode(nested(100_000))


def test_numbers_of_other_libraries_are_stored_as_plain_numbers() -> None:
    """Subclasses of float (as numpy's) and of int."""

    class Float64(float):
        pass

    assert through(Any, [Float64(1.5)]) == [1.5]
    with pytest.raises(PayloadError, match="nan"):
        ValueType.of(Any).encode([Float64("nan")])


# ─ refusals when reading ─────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("hint", "data", "where"),
    [
        (int, b'"secret"', "expected `int`, got `str` at `$`"),
        (list[Point], b'[{"x":1},{"x":"secret"}]', "at `$[1].x`"),
        (Point, b"{}", "missing required field `x`"),
        (Page[Card | Transfer], b'{"items":[{"$type":"Card"}]}', "at `$.items[0]`"),
        (Card | Transfer, b'{"number":"secret"}', "an object whose `$type` is 'Card' or 'Transfer'"),
        (
            Order,
            b'{"id":1,"paid":null,"ship_to":null,"prices":{},"checked":{"ok":{"x":"secret"}}}',
            "at `$.checked.ok.x`",
        ),
        (Colour, b'"secret"', "not one of the allowed values"),
        (Odd, b'"secret"', "not one of the allowed values"),
        (Address, b'{"street":"secret","since":"secret"}', "`Address` does not fit at `since`"),
        (dict[int, int], b'{"secret":1}', "a key: expected `int`"),
        (dict[int, Card | Transfer], b'{"secret":1}', "a key: expected `int`"),
        (UserId, b"3", "expected `str`, got `int`"),
        (Result[int, str], b'{"ok":1,"err":"secret"}', "`$`"),
        (Result[int, str], b'"secret"', "`$`"),
        (Any, b'{"secret', "not valid JSON"),
        (Any, b"\xff", "not valid JSON"),
        (str, b'"\xff"', "not valid JSON"),
        (Any, b"", "not valid JSON"),
        (Any, b"[" * 200_000, "nested too deeply"),
        (Cat | Dog, b'{"type":"secret","name":"x"}', "not one of the allowed tags"),
    ],
    ids=named,
)
def test_bytes_that_do_not_fit_are_undecodable(hint: Any, data: bytes, where: str) -> None:
    """The message says where, and never what: stored values may be secret."""
    with pytest.raises(UndecodableError) as caught:
        ValueType.of(hint).decode(data)

    assert where in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 200


def test_the_words_of_a_class_that_refuses_are_not_repeated() -> None:
    """Its `__post_init__` may well quote the value."""

    @dataclasses.dataclass
    class Checked:
        x: str

        def __post_init__(self) -> None:
            raise errors.pop()

    errors = [error("secret") for error in (ValueError, RuntimeError) * 2]
    while errors:
        for hint in (Checked, Checked | Point):
            data = b'{"$type":"Checked","x":"secret"}'
            with pytest.raises(UndecodableError) as caught:
                ValueType.of(hint).decode(data)
            assert "secret" not in str(caught.value)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    """Nothing but UndecodableError comes out of decode."""
    for value_type in (ANY, ORDERS, UNION):
        try:
            value_type.decode(data)
        except UndecodableError:
            pass


ANY, ORDERS, UNION = (
    ValueType.of(Any),
    ValueType.of(list[Order]),
    ValueType.of(Card | Result[int, str] | set[int]),
)


# ─ definitions ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "hint",
    [complex, range, type, Opaque, list[Opaque], dict[tuple[int, int], str], Page[Opaque], Opaque | int],
    ids=named,
)
def test_a_hint_that_cannot_be_stored_is_refused_at_definition(hint: Any) -> None:
    """With what to use instead."""
    with pytest.raises(DefinitionError, match="cannot be stored: use"):
        ValueType.of(hint)


def test_the_parameter_of_a_wrong_hint_is_named() -> None:
    """At the first use, because hints may name what is defined later."""

    def pay(amount: complex) -> None: ...

    def ship(order: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(DefinitionError, match=r"pay\(\): parameter `amount`: .*`complex`"):
        Arguments.of(pay).encode((1,), {})
    with pytest.raises(DefinitionError, match=r"ship\(\): the type hint of `order` names `NotThere`"):
        Arguments.of(ship).decode(b"{}")


def test_two_members_of_one_name_are_refused() -> None:
    """Unless their modules tell them apart."""
    first = dataclasses.make_dataclass("Twin", [("x", int)])
    second = dataclasses.make_dataclass("Twin", [("y", int)])

    with pytest.raises(DefinitionError, match="both called"):
        ValueType.of(first | second)


def test_members_of_one_name_are_told_apart_alike_by_a_script_and_who_imports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By their modules: `__main__` is one of them only where the script runs."""

    def union(module: str) -> tuple[ValueType, type]:
        ours, theirs = (dataclasses.make_dataclass("Cat", [("name", str)]) for _ in range(2))
        ours.__module__, theirs.__module__ = module, "elsewhere"
        return ValueType.of(ours | theirs), ours

    main = types.ModuleType("__main__")
    main.__file__ = "/srv/zoo.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    (in_script, cat), (imported, _) = union("__main__"), union("zoo")

    stored = in_script.encode(cat("tom"))

    assert imported.decode(stored).name == "tom"
    assert imported.encode(imported.decode(stored)) == stored


def test_no_hint_means_any() -> None:
    """For a return value as for a parameter; `-> None` means None."""

    def plain():  # type: ignore[no-untyped-def]
        ...

    def nothing() -> None: ...

    assert ValueType.of_return(plain).decode(b"[1]") == [1]
    assert ValueType.of_return(nothing).decode(b"null") is None
    with pytest.raises(UndecodableError):
        ValueType.of_return(nothing).decode(b"1")


def test_a_local_class_is_found_through_the_closure() -> None:
    """With postponed annotations, a class the function itself uses."""

    @dataclasses.dataclass
    class Local:
        x: int

    def work(item: Local) -> Local:
        return Local(item.x + 1)

    arguments, result = Arguments.of(work), ValueType.of_return(work)

    assert arguments.decode(arguments.encode((Local(1),), {})) == ((Local(1),), {})
    assert result.decode(b'{"x":1}') == Local(1)


# ─ arguments ─────────────────────────────────────────────────────────────────


def everything(
    a: int, /, b: Card | Transfer, c: str = "c", *rest: int, d: float, e: bool = True, **more: Point
) -> None: ...


def positional(order: Order, times: int = 1) -> None: ...


def untyped(a, b=2): ...  # type: ignore[no-untyped-def]


def gaps(a: int = 1, b: int = 2, *, c: int = 3) -> None: ...


def unpacked(**options: Unpack[Extra]) -> None: ...


class Checkout:
    def __init__(self, point: Point, note: str = "") -> None: ...


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any], bytes]] = [
    (everything, (1, Card("1")), {"d": 0.5}, b'{"a":1,"b":{"$type":"Card","number":"1"},"d":0.5}'),
    (
        everything,
        (1, Card("1"), "x", 4, 5),
        {"d": 0.5, "a": Point(1)},
        b'{"a":1,"b":{"$type":"Card","number":"1"},"c":"x","d":0.5,"more":{"a":{"x":1,"y":0}},"rest":[4,5]}',
    ),
    (untyped, ([1],), {}, b'{"a":[1]}'),
    (untyped, (1, 2), {}, b'{"a":1,"b":2}'),
    (gaps, (), {}, b"{}"),
    (gaps, (), {"b": 5}, b'{"b":5}'),
    (gaps, (1,), {"c": 5}, b'{"a":1,"c":5}'),
    (unpacked, (), {"note": "n"}, b'{"options":{"note":"n"}}'),
    (Checkout, (Point(1),), {}, b'{"point":{"x":1,"y":0}}'),
    (lambda: None, (), {}, b"{}"),
    (functools.partial(positional, times=3), (ORDER,), {}, b""),
]


@pytest.mark.parametrize(("fn", "args", "kwargs", "stored"), CALLS, ids=named)
def test_a_call_is_stored_by_parameter_name_and_comes_back(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stored: bytes
) -> None:
    """Defaults that were not passed are not stored: they are today's."""
    arguments = Arguments.of(fn)

    data = arguments.encode(args, kwargs)

    assert data == stored or not stored
    assert arguments.decode(data) == (args, kwargs)
    arguments.check(data)


def test_keywords_come_back_in_their_places() -> None:
    """However it was called, the call means the same and has the same bytes."""
    arguments = Arguments.of(positional)
    spellings = [((ORDER, 2), {}), ((ORDER,), {"times": 2}), ((), {"times": 2, "order": ORDER})]

    stored = {arguments.encode(args, kwargs) for args, kwargs in spellings}

    assert len(stored) == 1
    assert arguments.decode(stored.pop()) == ((ORDER, 2), {})


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (everything, (), {}),
        (everything, (1,), {"d": 1.0}),
        (everything, (1, 2), {}),
        (everything, (1, 2, "c"), {"d": 1.0, "c": "c"}),
        (everything, (), {"a": 1, "b": 2, "d": 1.0}),
        (gaps, (1, 2, 3), {}),
        (gaps, (1,), {"a": 2}),
        (gaps, (), {"z": 2}),
        (positional, (), {}),
        (positional, (1, 2, 3), {}),
        (lambda: None, (1,), {}),
        (lambda a, /: None, (), {"a": 1}),
        (lambda a, /, b=1: None, (1,), {"a": 1}),
        (lambda *, a, b: None, (), {}),
        (lambda a, b, c: None, (), {}),
    ],
    ids=named,
)
def test_wrong_arguments_are_refused_in_pythons_words(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Exactly when Python would refuse them, naming the function."""
    with pytest.raises(TypeError) as pythons:
        fn(*args, **kwargs)
    with pytest.raises(ArgumentsError) as ours:
        Arguments.of(fn).encode(args, kwargs)

    said = str(pythons.value).replace(f"{fn.__qualname__}()", f"{fn.__name__}()")
    assert str(ours.value).startswith(f"{fn.__name__}()")
    if "keyword-only argument" not in said and "were given" not in said and "keyword arguments" not in said:
        assert str(ours.value) == said


@given(
    st.lists(st.integers(), max_size=6), st.dictionaries(st.sampled_from("abcdez"), st.integers(), max_size=4)
)
def test_arguments_bind_as_in_python(args: list[int], kwargs: dict[str, int]) -> None:
    """Accepted exactly when a call is, and the decoded call gives the same."""

    def plain(a, /, b, c=3, *, d=4, e):
        return (a, b, c, d, e)  # type: ignore[no-untyped-def]

    def variadic(a, b=2, *rest, d=4, **more):
        return (a, b, rest, d, more)  # type: ignore[no-untyped-def]

    for fn in (plain, variadic):
        arguments = Arguments.of(fn)
        try:
            expected = fn(*args, **kwargs)
        except TypeError:
            with pytest.raises(ArgumentsError):
                arguments.encode(tuple(args), kwargs)
        else:
            again, named = arguments.decode(arguments.encode(tuple(args), kwargs))
            assert fn(*again, **named) == expected


def test_the_path_of_what_cannot_be_stored_begins_with_the_parameter() -> None:
    """As the caller knows it."""
    broken = dataclasses.replace(ORDER, prices={3: Opaque()})  # type: ignore[dict-item]

    with pytest.raises(PayloadError) as caught:
        Arguments.of(positional).encode((broken,), {})
    with pytest.raises(PayloadError) as nan:
        Arguments.of(untyped).encode((1, [math.nan]), {})

    assert caught.value.path == "$.order.prices[3]"
    assert nan.value.path == "$.b[0]"


@pytest.mark.parametrize(
    ("fn", "data", "message"),
    [
        (positional, b'{"order":{},"times":1}', "`order`: object missing required field id"),
        (gaps, b'{"a":"x"}', r"gaps\(\): `a`: expected int, got str"),
        (gaps, b'{"z":1}', "unexpected argument 'z'"),
        (gaps, b"[1]", "expected object, got array"),
        (gaps, b"{", r"gaps\(\): not valid JSON"),
        (Checkout, b"{}", "missing 1 required positional argument: 'point'"),
        (Checkout, b'{"point":{"x":"y"}}', "`point.x`: expected int, got str"),
        (everything, b'{"a":1,"b":{"$type":"Card","number":1},"d":1}', "`b.number`: expected str, got int"),
        (everything, b'{"a":1,"b":{"$type":"Card","number":"1"},"d":1,"rest":[1]}', "`rest`: positional"),
    ],
    ids=named,
)
def test_check_names_the_parameter_that_does_not_fit(fn: Any, data: bytes, message: str) -> None:
    """For callers, before anything is written."""
    with pytest.raises(ArgumentsError, match=message):
        Arguments.of(fn).check(data)


def test_values_from_a_command_line_are_stored_as_a_call_would() -> None:
    """Plain JSON in, the same bytes out as from Python."""
    arguments = Arguments.of(Checkout)

    assert arguments.encode_json([{"x": 1}], {"note": "n"}) == arguments.encode((Point(1), "n"), {})
    assert Arguments.of(lambda day: day).encode_json(["2024-02-29"], {}) == b'{"day":"2024-02-29"}'
    with pytest.raises(ArgumentsError, match="`point`: expected object, got str"):
        arguments.encode_json(["x"], {})
    with pytest.raises(ArgumentsError, match="missing 1 required"):
        arguments.encode_json([], {})
    with pytest.raises(ArgumentsError, match="unexpected keyword argument 'y'"):
        arguments.encode_json([{"x": 1}], {"y": 1})


def test_a_parameter_that_was_removed_is_ignored_when_read() -> None:
    """Runs in flight survive it; `check` refuses it, for a caller means something by it."""
    arguments = Arguments.of(gaps)

    assert arguments.decode(b'{"a":1,"removed":2}') == ((1,), {})
    with pytest.raises(ArgumentsError):
        arguments.check(b'{"a":1,"removed":2}')


def test_a_parameter_that_is_missing_in_the_store_is_undecodable() -> None:
    """A parameter without a default was added while the run was open."""
    with pytest.raises(UndecodableError, match=r"arguments of positional\(\): .*`order`"):
        Arguments.of(positional).decode(b"{}")


def test_parameters_are_listed_with_the_hints_of_their_stored_form() -> None:
    """For help texts and completion."""
    assert Arguments.of(gaps).parameters == [("a", int), ("b", int), ("c", int)]
    assert dict(Arguments.of(everything).parameters)["rest"] == list[int]
    assert dict(Arguments.of(everything).parameters)["more"] == dict[str, Point]
    assert Arguments.of(untyped).parameters == [("a", Any), ("b", Any)]


@pytest.mark.parametrize("hint", [object, list[object], dict[str, object], tuple[object, ...]])
def test_object_within_a_container_is_plain_json(hint: Any) -> None:
    """What a strict type checker makes authors write for "anything" reads back as it was written."""
    value: Any = {"a": [None, 1]} if hint == dict[str, object] else [None, "x", 1, {"b": []}]
    kind = ValueType.of(hint)

    read = kind.decode(kind.encode(value))

    assert (list(read) if isinstance(read, tuple) else read) == value
