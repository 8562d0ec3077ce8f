"""Questions to people: how one is addressed, and which of them a message answers.

A question is the n-th of its name in a run: `run_id@epoch/name#n`, as with activities. An answer is a signal whose message id
names the question, so a question takes one answer, whoever sends it, and an answer that comes late is not taken for that to another
question. Knows nothing of stores.
"""

from __future__ import annotations

from typing import Final

_ANSWER: Final = "answer:"


def ask_id(key_prefix: str, name: str, n: int) -> str:
    """Return the address of a question; `key_prefix` is `run_id@epoch/`."""
    return f"{key_prefix}{name}#{n}"


def answer_id(ask: str) -> str:
    """Return the message id of the answer to a question."""
    return f"{_ANSWER}{ask}"


def question_of(message_id: str | None, key_prefix: str, name: str) -> int:
    """Return which question of that name a message answers, from 1; 0 if it is an ordinary signal, -1 if one of another life."""
    if message_id is None or not message_id.startswith(_ANSWER):
        return 0
    prefix = f"{_ANSWER}{key_prefix}{name}#"
    number = message_id.removeprefix(prefix)
    return int(number) if message_id.startswith(prefix) and number.isdigit() else -1
