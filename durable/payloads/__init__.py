"""Values <-> stored bytes, by type hint.

The stored form is canonical JSON: equal values of one type give equal bytes, so that an input can be compared with a
recorded one. What JSON cannot hold is refused when it is written, never discovered when it is read.

Two ways lead there. Where msgspec understands a hint by itself (nearly always) it does all the work. Where it does not
(a union of two plain dataclasses, `Result`, an enum of tuples), a tree of nodes, one per part of the hint, turns the
value into something it understands (*lower*) and back (*lift*). The same tree finds the place in a value that msgspec
refused.

What a hint says is what comes back: without one (or `Any`), plain JSON, so a tuple returns as a list and a dataclass
as a dict. Dicts are stored sorted by key. A time zone is stored as its offset. Unions that JSON alone cannot tell apart
carry the member's name, `{"$type": "Card", ...}`, looked up among the members of the hint only.

    misfits                      what does not fit, and where
    plain  reading  refusing     values <-> JSON without a hint; classes by hooks; finding what cannot be stored
    hints                        type hints as Python gives them
    nodes  containers  objects  unions     the parts of a hint
    compiling                    hints -> nodes
    values  binding  arguments   what others use: one value's type, the arguments of one function
    codec  encryption            the hook over all stored bytes, and one that encrypts

Knows nothing of workflows, runs or stores; imports nothing that data names.
"""

from durable.payloads.arguments import Arguments
from durable.payloads.values import ValueType

__all__ = ["Arguments", "ValueType"]
