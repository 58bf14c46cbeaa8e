"""The Lua scripts: loaded from ``lua/``, addressed by their SHA1; running them is the business of ``connection``.

Scripts are sent as EVALSHA by hand: redis-py's registered scripts add a SCRIPT EXISTS round trip to each pipeline.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

__all__ = ("Script", "load")


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its verb, its text and the digest Redis knows it by."""

    name: str
    text: str
    sha: str


def load(name: str) -> Script:
    """Load ``lua/NAME.lua``."""
    text = resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ACK = load("ack")
BUSY = load("busy")
DELAY = load("delay")
EXTEND = load("extend")
FORGET = load("forget")
LIMIT = load("limit")
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
TOUCH = load("touch")
