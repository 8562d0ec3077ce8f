"""Reports in the XML that CI servers read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from durable_cli.problems import Problem, quoted

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Case(NamedTuple):
    """One thing that was looked at; `failure` says what is wrong with it, "" nothing."""

    suite: str
    name: str
    failure: str = ""
    is_skipped: bool = False


def write_junit(path: Path, cases: Sequence[Case]) -> None:
    """Write all cases, by suite."""
    root = ElementTree.Element("testsuites", name="durable check")
    for suite in dict.fromkeys(case.suite for case in cases):
        within = [case for case in cases if case.suite == suite]
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=_clean(suite),
            tests=str(len(within)),
            failures=str(sum(bool(case.failure) for case in within)),
            skipped=str(sum(case.is_skipped for case in within)),
            errors="0",
        )
        for case in within:
            one = ElementTree.SubElement(element, "testcase", classname=_clean(suite), name=_clean(case.name))
            if case.failure:
                told = ElementTree.SubElement(one, "failure", message=_clean(case.failure.splitlines()[0]))
                told.text = _clean(case.failure)
            elif case.is_skipped:
                ElementTree.SubElement(one, "skipped")
    try:
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Problem(f"cannot write {quoted(str(path))}: {error}") from error


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
