"""From a target to the workflows it names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from durable_cli.options import Settings
from durable_cli.problems import NOT_FOUND, USAGE, Problem
from durable_cli.targets import load_target, one_workflow, parse_target, workflow_named
from hypothesis import given
from hypothesis import strategies as st

FLOWS = """
from durable import activity, workflow

@activity
def touch() -> None: ...

@workflow(name="order-flow")
async def order(order_id: str) -> None: ...

@workflow
async def other() -> None: ...

both = [order, other]
number = 3
def plain(): ...
"""


@pytest.fixture
def flows(here: Path) -> Path:
    """A package shop with flows.py in it."""
    (here / "shop").mkdir()
    (here / "shop" / "__init__.py").touch()
    (here / "shop" / "flows.py").write_text(FLOWS)
    for name in [name for name in sys.modules if name.split(".")[0] in ("shop", "app")]:
        del sys.modules[name]
    return here


@pytest.mark.parametrize(
    ("text", "module", "attr"),
    [("shop.flows", "shop.flows", None), ("shop.flows:order", "shop.flows", "order"), ("a/b.py", "a/b.py", None), ("a/b.py:c.d", "a/b.py", "c.d")],
)  # fmt: skip
def test_a_target_is_a_module_or_a_file_and_perhaps_a_part_of_it(
    text: str, module: str, attr: str | None
) -> None:
    """Taken apart at the last colon."""
    assert parse_target(text) == (module, attr)


@given(st.text())
def test_any_text_is_a_target_or_a_usage_error(text: str) -> None:
    """Nothing else comes out of it."""
    try:
        target = parse_target(text)
    except Problem:
        return
    assert text == target.module + (f":{target.attr}" if target.attr else "")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("shop.flows", ["order-flow", "other"]),
        ("shop/flows.py", ["order-flow", "other"]),
        ("shop.flows:order", ["order-flow"]),
        ("shop.flows:order-flow", ["order-flow"]),
        ("shop/flows.py:both", ["order-flow", "other"]),
        ("shop:flows", ["order-flow", "other"]),
    ],
)
def test_every_spelling_finds_its_workflows(flows: Path, text: str, names: list[str]) -> None:
    """By attribute, by workflow name, by list, by module; without a part, all of them."""
    load_target("shop.flows", Settings({}))  # `shop:flows` needs the submodule imported

    assert sorted(one.name for one in load_target(text, Settings({})).workflows) == names


def test_a_file_of_a_package_is_the_same_module_as_by_name(flows: Path) -> None:
    """So that nothing is defined twice."""
    by_file = load_target(str(flows / "shop" / "flows.py"), Settings({})).workflows
    by_name = load_target("shop.flows", Settings({})).workflows

    assert [id(one) for one in by_file] == [id(one) for one in by_name]


def test_a_file_named_like_another_module_is_loaded_all_the_same(flows: Path) -> None:
    """json.py in the current directory is not the library's json."""
    (flows / "json.py").write_text(FLOWS)

    assert len(load_target("json.py", Settings({})).workflows) == 2
    assert sys.modules["json"].__file__ != str(flows / "json.py")


@pytest.mark.parametrize(
    ("text", "code", "message", "hint"),
    [
        ("shop.flows:ordr", NOT_FOUND, "no workflow", "known: order-flow, other"),
        ("shop.flows:othr", NOT_FOUND, "no workflow", 'did you mean "other"?'),
        ("shop.flows:number", USAGE, "no workflow but int", None),
        ("shop.flows:plain", USAGE, "no workflow but function", "decorate it with @workflow"),
        ("shop.flows:touch", USAGE, "no workflow but Activity", None),
        ("ap.py", USAGE, "no file", 'did you mean "app.py"?'),
        ("aps", USAGE, "cannot import aps: ModuleNotFoundError", 'did you mean "app"?'),
        ("a b", USAGE, "no module name", None),
        ("x:", USAGE, "no target", None),
        ("broken.py", USAGE, "cannot import .*ZeroDivisionError", "broken.py:2"),
        ("syntax.py", USAGE, "cannot import .*SyntaxError", "syntax.py:1"),
        ("leaves.py", USAGE, "cannot import .*SystemExit", "leaves.py:1"),
    ],
)
def test_what_cannot_be_found_says_what_is_near(
    flows: Path, text: str, code: int, message: str, hint: str | None
) -> None:
    """Unknown workflows are `not found`, unusable targets are usage errors; neither is a traceback."""
    (flows / "broken.py").write_text("\n1 / 0\n")
    (flows / "syntax.py").write_text("def\n")
    (flows / "leaves.py").write_text("raise SystemExit(0)\n")

    with pytest.raises(Problem, match=message) as caught:
        load_target(text, Settings({}))

    assert caught.value.code == code
    assert hint is None or hint in (caught.value.hint or "")


def test_one_workflow_must_be_one(flows: Path) -> None:
    """`durable run shop.flows` cannot choose."""
    with pytest.raises(Problem, match="2 workflows: order-flow, other"):
        one_workflow("shop.flows", Settings({}))


def test_a_name_is_looked_up_in_the_app(flows: Path) -> None:
    """--app, DURABLE_APP, [tool.durable] app: in this order."""
    assert workflow_named("other", Settings({"DURABLE_APP": "shop.flows"})).name == "other"
    assert workflow_named("shop.flows:order", Settings({})).name == "order-flow"
    with pytest.raises(Problem, match="do not know where"):
        workflow_named("other", Settings({}))

    (flows / "pyproject.toml").write_text('[tool.durable]\napp = "shop.flows"\n')
    assert workflow_named("other", Settings({})).name == "other"
    with pytest.raises(Problem, match="no workflow") as caught:
        workflow_named("othr", Settings({}))
    assert (caught.value.code, caught.value.hint) == (NOT_FOUND, 'did you mean "other"?')
