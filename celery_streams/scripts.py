"""The Lua scripts: loaded from ``lua/``, addressed by their SHA1; running them is the business of ``connection``.

What several verbs share stands in ``lua/prelude/``, one function a file. A script names what it uses in a line
``-- Needs    owned, settle``, and only that is put in front of it when it is loaded. What runs for each message
(``ack``, ``read``, ``extend``) needs nothing: Redis makes a script's functions anew at each call.

Scripts are sent as EVALSHA by hand: redis-py's registered scripts add a SCRIPT EXISTS round trip to each pipeline.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

__all__ = ("Command", "Script", "following", "load")

#: A script with its keys and arguments.
Command = tuple["Script", Sequence[Any], Sequence[Any]]

#: What comes behind a step, by its reply.
Behind = Callable[[Any], list[Command]]


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its verb, its text and the digest Redis knows it by."""

    name: str
    text: str
    sha: str
    #: Of a script that notes something behind what it does: how to do one after the other where their keys lie apart,
    #: on a Redis Cluster. It takes keys and arguments, and returns the first step and what tells, by the reply to that,
    #: which commands come behind.
    apart: Callable[[Sequence[Any], Sequence[Any]], tuple[Command, Behind]] | None = field(
        default=None, compare=False, repr=False
    )


_NEEDS = re.compile(r"^-- Needs +(.+)$", re.MULTILINE)


def load(name: str) -> Script:
    """Load ``lua/NAME.lua``, with what it needs of the prelude in front."""
    text = "\n".join(_parts(f"{name}.lua", {}).values())
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _parts(name: str, known: dict[str, str]) -> dict[str, str]:
    """Add the file ``name`` to ``known`` behind all that it needs; each file stands there once."""
    text = resources.files(__package__).joinpath("lua", *name.split("/")).read_text(encoding="utf-8")
    for line in _NEEDS.findall(text):
        for needed in line.split(", "):
            if f"prelude/{needed}.lua" not in known:
                _parts(f"prelude/{needed}.lua", known)
    known[name] = text
    return known


def following(
    script: Script,
    more: Script,
    *,
    told: bool = False,
    rest: Callable[[Any, Sequence[Any], Sequence[Any]], list[Command]] | None = None,
) -> Script:
    """Return ``script``, in one step with ``more``, which runs behind it; the reply is that of ``script``.

    The last two arguments say how many keys and arguments are those of ``script``; what is in between is ``more``'s.
    When ``more`` is ``told``, the reply of ``script`` is the last of its arguments. ``rest`` says how ``more`` is run
    where its keys lie apart from those of ``script``: given the reply to that, its own keys and its own arguments.
    """
    text = "\n".join(
        (
            "local all_keys, all_args = KEYS, ARGV",
            "local of_keys, of_args = tonumber(ARGV[#ARGV - 1]), tonumber(ARGV[#ARGV])",
            "local function part(all, from, to)",
            "    local found = {}",
            "    for at = from, to do found[#found + 1] = all[at] end",
            "    return found",
            "end",
            f"local function first(KEYS, ARGV)\n{script.text}\nend",
            f"local function second(KEYS, ARGV)\n{more.text}\nend",
            "local reply = first(part(all_keys, 1, of_keys), part(all_args, 1, of_args))",
            "local rest = part(all_args, of_args + 1, #all_args - 2)",
            *(("rest[#rest + 1] = reply or false",) if told else ()),
            "second(part(all_keys, of_keys + 1, #all_keys), rest)",
            "return reply",
        )
    )
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(f"{script.name} and {more.name}", text, sha, _apart(script, more, rest))


def _apart(
    script: Script, more: Script, rest: Callable[[Any, Sequence[Any], Sequence[Any]], list[Command]] | None
) -> Callable[[Sequence[Any], Sequence[Any]], tuple[Command, Behind]] | None:
    inner = script.apart

    def stepwise(keys: Sequence[Any], args: Sequence[Any]) -> tuple[Command, Behind]:
        of_keys, of_args = int(args[-2]), int(args[-1])
        assert rest is not None
        behind = partial(_given, rest, keys[of_keys:], args[of_args:-2])
        return (script, keys[:of_keys], args[:of_args]), behind

    def within(keys: Sequence[Any], args: Sequence[Any]) -> tuple[Command, Behind]:
        # What is noted comes last: behind ``more``, which lies where ``script`` does.
        of_keys, of_args = int(args[-2]), int(args[-1])
        assert inner is not None
        (first, names, words), behind = inner(keys[:of_keys], args[:of_args])
        both = following(first, more)
        more_args = (*args[of_args:-2], len(names), len(words))
        return (both, [*names, *keys[of_keys:]], [*words, *more_args]), behind

    return stepwise if rest is not None else within if inner is not None else None


def _given(
    rest: Callable[[Any, Sequence[Any], Sequence[Any]], list[Command]],
    keys: Sequence[Any],
    args: Sequence[Any],
    reply: Any,
) -> list[Command]:
    return rest(reply, keys, args)


ACK = load("ack")
ADVANCE = load("advance")
APPEND = load("append")
BEAT = load("beat")
BUSY = load("busy")
CANCEL = load("cancel")
CLOCK_WAS_SET = load("clock_was_set")
DELAY = load("delay")
EXTEND = load("extend")
FORGET = load("forget")
HURRY = load("hurry")
PREVIEW = load("preview")
PROMOTE = load("promote")
PUBLISH = load("publish")
PUBLISH_BLOCK = load("publish_block")
PURGE = load("purge")
READ = load("read")
RECOVER = load("recover")
REJECT = load("reject")
PUT_BACK = load("put_back")
REPLAY = load("replay")
REQUEUE = load("requeue")
RETRY = load("retry")
SCAN = load("scan")
TAKE_TURNS = load("take_turns")
TOUCH = load("touch")
