"""The Lua scripts: loaded from ``lua/``, addressed by their SHA1; running them is the business of ``connection``.

What several verbs share stands in ``lua/prelude/``, one function a file. A script names what it uses in a line
``-- Needs    owned, settle``, and only that is put in front of it when it is loaded. What runs for each message
(``ack``, ``read``, ``extend``) needs nothing: Redis makes a script's functions anew at each call.

Scripts are sent as EVALSHA by hand: redis-py's registered scripts add a SCRIPT EXISTS round trip to each pipeline.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

__all__ = ("Script", "load")


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its verb, its text and the digest Redis knows it by."""

    name: str
    text: str
    sha: str


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


ACK = load("ack")
BEAT = load("beat")
BUSY = load("busy")
CLOCK_WAS_SET = load("clock_was_set")
DELAY = load("delay")
EXTEND = load("extend")
FORGET = load("forget")
LIMIT = load("limit")
PREVIEW = load("preview")
PROMOTE = load("promote")
PUBLISH = load("publish")
PURGE = load("purge")
READ = load("read")
RECOVER = load("recover")
REJECT = load("reject")
RELEASE = load("release")
REPLAY = load("replay")
REQUEUE = load("requeue")
RETRY = load("retry")
SCAN = load("scan")
TOUCH = load("touch")
