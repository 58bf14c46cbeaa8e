"""Redis errors: what a reply that is an error means, as one of our classes: nobody else looks at its words.

Where a Redis Cluster says that a slot is elsewhere, ``cluster_nodes`` reads it before this does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import redis

from .exceptions import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ClusterNode,
    CommandMissing,
    DatabaseRefused,
    GroupExists,
    GroupMissing,
    KeyMissing,
    KeyNotPermitted,
    KeyOfOtherType,
    LoginRefused,
    NotPermitted,
    ScriptsRefused,
)
from .said import Said, say
from .scripts import Script

__all__ = ("ERROR_KINDS", "count", "count_errors", "explained", "is_full", "no_cluster", "no_scripts", "translated")

#: What an error is counted as: no connection or no answer in time; a replica, a full Redis, one that starts or runs a
#: script for too long; a login or command that was refused; and the rest.
ERROR_KINDS = ("connection", "readonly", "full", "busy", "denied", "other")

#: Error replies that pass by themselves (start-up, failover, a full disk, a long script).
_PASSING = re.compile(
    r"(?:^|: -?|-)(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|BUSY|NOREPLICAS|UNBLOCKED) "
)

#: Of these, what says that Redis has no time now, and that it is a replica by now.
_BUSY = re.compile(r"(?:^|: -?|-)(?:LOADING|BUSY) ")
_READONLY = re.compile(r"(?:^|: -?|-)READONLY ")

#: Error replies that name keys, which may hold any word.
_ABOUT_A_KEY = re.compile(r"(?:^|: -?|-)(NOGROUP|WRONGTYPE) ")

#: The same, where redis-py has a class for the reply: then it cuts the word off the text.
_PASSING_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)

#: What only a node of a Cluster says: that another one has the key, or that keys lie apart. redis-py has classes for
#: the first three, and cuts the word off the text.
_CLUSTER_WORDS: dict[type[Exception], str] = {
    redis.exceptions.MovedError: "MOVED ",
    redis.exceptions.AskError: "ASK ",
    redis.exceptions.ClusterCrossSlotError: "CROSSSLOT ",
}
_CLUSTER = re.compile(r"(?:^|: -?|-)(?:MOVED|ASK|CROSSSLOT) |non local key in a cluster node")

#: How servers say that there is only database 0: a Cluster, one of a single database, one without SELECT, an ACL.
_ONE_DATABASE = re.compile(
    r"(?:[A-Z]+ )?(?:SELECT is not allowed|(?:invalid )?DB index|(?:unknown command|this user .+ run the) .SELECT\b)",
    re.IGNORECASE,
)

#: How they say that they run no scripts; what a script may not send is told otherwise.
_NO_SCRIPTS = re.compile(r"(?:ERR )?unknown command .EVAL(?:SHA)?\b", re.IGNORECASE)

#: How they say that they have no such command, which nobody can permit.
_NO_COMMAND = re.compile(r"(?:ERR )?unknown (?:sub)?command ", re.IGNORECASE)

#: How Redis 6.2 and 7.0 say that a script may not send a command, which they do not name; and where it stands.
_KEY_DENIED = "access one of the keys"
_SCRIPT_DENIED = "The user executing the script can't"
_SCRIPT_LINE = re.compile(r"user_script: ?([0-9]+)")
_SCRIPT_CALL = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?")

#: How they say that nobody has logged in.
_PASSWORD_WANTED = re.compile(r"Authentication required|HELLO must be called with the client already authenticated")

#: Commands that every Redis has, and a Sentinel has not.
_EVERYWHERE = frozenset(("GET", "HGETALL", "SMEMBERS", "TIME", "XADD"))
_SENTINEL = say(" (if it is a Sentinel, use sentinel:// and name the master with ?master_name=...)")
_NO_SENTINEL = say(" (that server is no Sentinel: use redis://)")

#: What a TLS handshake ends with where nobody speaks TLS: a Redis waits for the end of the line.
_NO_TLS = re.compile("Timeout connecting|WRONG_VERSION_NUMBER|UNEXPECTED_EOF|EOF occurred|Connection reset")
_TLS_SCHEMES = ("rediss", "valkeys")
_NO_TLS_HINT = say(" (does it speak TLS? If not, use redis://)")
_NO_FILE = say(" (a file that its TLS options name is not there)")

#: What to do about a certificate that nobody known has signed.
_UNVERIFIED = say(
    " (name the CA that signed it with ?ssl_ca_certs=FILE, or turn off verification with ?ssl_cert_reqs=CERT_NONE)"
)

#: What to do about a Redis that takes no writes, because its disk or its memory is full.
_DISK_FULL = say(" (look at its log, and make room on its disk; then BGSAVE has it try again)")
_MEMORY_FULL = say(
    " (raise maxmemory, or start more workers: they go on, and make room; streams_max_length bounds queues)"
)

#: How they say, to scripts too, that their memory is full.
_FULL = "OOM command"

#: Commands whose second word is a command of its own.
_CONTAINERS = frozenset(("CLIENT", "CONFIG", "MEMORY", "XGROUP", "XINFO"))


def translated(
    exc: Exception, sent: str | Script, *, shown: str, database: bool, let_in: bool, key: str = ""
) -> BrokerError:
    """Return our error for the driver's.

    Args:
        sent: the command, or what was being done.
        shown: the URL, as it may be shown.
        database: the URL names a database other than 0.
        let_in: a login with a token has succeeded before.
        key: the one that the command names; '' where it may be one of several.
    """
    # Without the driver's full stop: sentences of ours go on behind it. And without the Sentinels that did not answer,
    # of which it says everything.
    text = str(exc).partition(" : <redis.")[0].rstrip(".") or type(exc).__name__
    command = f"{sent.name}.lua" if isinstance(sent, Script) else sent
    failed = say("Redis at %(server)s failed %(command)s: %(error)s", server=shown, command=command, error=text)
    if isinstance(exc, redis.exceptions.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
        if let_in:
            # Its token ended, or the next one is not known there yet: the provider is asked for another.
            return BrokerUnavailable(
                say("Redis at %(server)s refused the login with a token: %(error)s", server=shown, error=text)
            )
        if _PASSWORD_WANTED.search(text):  # Redis 7 answers HELLO with a paragraph
            text = say("it asks for a password (redis://:PASSWORD@HOST, or redis://USER:PASSWORD@HOST)")
        return LoginRefused(say("Redis at %(server)s refused the login: %(error)s", server=shown, error=text))
    if database and _ONE_DATABASE.match(text):
        return DatabaseRefused(
            say(
                "Redis at %(server)s has no such database (%(error)s): use database 0, and streams_key_prefix to keep "
                "projects apart",
                server=shown,
                error=text,
            )
        )
    if _NO_SCRIPTS.match(text):
        return ScriptsRefused(no_scripts(shown, text))
    if _SCRIPT_DENIED in text and isinstance(sent, Script):
        return NotPermitted(
            say(
                "Redis at %(server)s does not permit %(command)s (%(script)s): %(error)s",
                server=shown,
                command=_denied_call(sent, text),
                script=command,
                error=text,
            )
        )
    if isinstance(exc, redis.exceptions.NoPermissionError) or "NOPERM" in text:
        kind = KeyNotPermitted if _KEY_DENIED in text else NotPermitted
        return kind(
            say("Redis at %(server)s does not permit %(command)s: %(error)s", server=shown, command=command, error=text)
        )
    hint: str
    if _NO_COMMAND.match(text):
        hint = _SENTINEL if command in _EVERYWHERE else ""
        if "'SENTINEL'" in text:
            hint = _NO_SENTINEL
        return CommandMissing(
            say(
                "Redis at %(server)s does not have %(command)s: %(error)s%(hint)s",
                server=shown,
                command=command,
                error=text,
                hint=hint,
            )
        )
    if isinstance(exc, tuple(_CLUSTER_WORDS)) or _CLUSTER.search(text):
        said = _CLUSTER_WORDS.get(type(exc), "")
        return ClusterNode(no_cluster(shown, f"{said}{text}"))
    if isinstance(exc, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)):
        hint = _UNVERIFIED if "CERTIFICATE_VERIFY_FAILED" in text else ""
        if shown.startswith(_TLS_SCHEMES) and _NO_TLS.search(text):
            hint = _NO_TLS_HINT
        elif shown.startswith(_TLS_SCHEMES) and "No such file or directory" in text:
            hint = _NO_FILE
        return BrokerUnavailable(
            say("Redis at %(server)s cannot be reached: %(error)s%(hint)s", server=shown, error=text, hint=hint)
        )
    if isinstance(exc, redis.exceptions.InvalidResponse):
        return BrokerError(say("%(what)s (what listens there is no Redis, or wants TLS: rediss://)", what=failed))
    about_key = _ABOUT_A_KEY.search(text)
    if about_key:
        if about_key[1] == "NOGROUP":
            return GroupMissing(failed)
        where = f"the key {key}" if key else "celery-streams doctor names the key"
        return KeyOfOtherType(f"{failed} ({where})")
    if isinstance(exc, _PASSING_ERRORS) or _PASSING.search(text):
        hint = _DISK_FULL if "MISCONF" in text else ""
        return BrokerUnavailable(
            say("Redis at %(server)s is not ready: %(error)s%(hint)s", server=shown, error=text, hint=hint)
        )
    if isinstance(exc, redis.exceptions.OutOfMemoryError) or is_full(text):
        return BrokerFull(
            say("Redis at %(server)s is full: %(error)s%(hint)s", server=shown, error=text, hint=_MEMORY_FULL)
        )
    if text.startswith("BUSYGROUP"):
        return GroupExists(failed)
    if text.startswith(("no such key", "ERR no such key")):
        return KeyMissing(failed)
    return BrokerError(failed)


def no_cluster(shown: str, said: str) -> Said:
    """Return what to do about a server that says it is a node of a Redis Cluster."""
    return say(
        "Redis at %(server)s is a node of a Redis Cluster (%(error)s): set broker_url, or streams_url, to "
        "redis+cluster://HOST:PORT (rediss+cluster:// with TLS)",
        server=shown,
        error=said,
    )


def no_scripts(shown: str, said: str) -> Said:
    """Return what to do about a server that runs no Lua scripts."""
    return say(
        "Redis at %(server)s runs no Lua scripts (%(error)s), without which streams do not work; use a server or a "
        "plan that permits EVAL",
        server=shown,
        error=said,
    )


def is_full(text: str) -> bool:
    """Return whether Redis says, in a reply or to a script, that its memory is full."""
    return _FULL in text


#: Called with the kind of each error; None: nobody counts them.
_on_error: Callable[[str], None] | None = None


def count_errors(counted: Callable[[str], None]) -> None:
    """Have each error of Redis that this process meets counted from now on, by one of :data:`ERROR_KINDS`.

    What merely says that a key or group is there, or is not, is none.
    """
    global _on_error
    _on_error = counted


def count(exc: Exception, error: BrokerError) -> None:
    """Count an error, if anybody wants to know: the driver's, and what became of it."""
    if _on_error is not None and not isinstance(error, (GroupExists, GroupMissing, KeyMissing)):
        _on_error(_kind(exc, error))


def _kind(exc: Exception, error: BrokerError) -> str:
    if isinstance(error, BrokerFull):
        return "full"
    if isinstance(error, (NotPermitted, LoginRefused)):
        return "denied"
    if not isinstance(error, BrokerUnavailable):
        return "other"
    # redis-py has classes for these two, and cuts the word off the text of the first.
    if isinstance(exc, redis.exceptions.ReadOnlyError) or _READONLY.search(str(exc)):
        return "readonly"
    if isinstance(exc, redis.exceptions.BusyLoadingError) or _BUSY.search(str(exc)):
        return "busy"
    return "connection" if not isinstance(exc, redis.ResponseError) else "other"


def explained(script: Script, text: str) -> str:
    """Return what a script reports of a refusal, with the command that it was not permitted to send."""
    return f"not permitted: {_denied_call(script, text)} ({text})" if _SCRIPT_DENIED in text else text


def _denied_call(script: Script, text: str) -> str:
    """Return the command that a script was not permitted to send: what stands in the line that the server names."""
    lines = script.text.splitlines()
    place = _SCRIPT_LINE.search(text)
    number = int(place[1]) if place else 0
    called = _calls(lines[number - 1]) if 0 < number <= len(lines) else []
    return " or ".join(called or _calls(script.text))


def _calls(text: str) -> list[str]:
    found = _SCRIPT_CALL.findall(text)
    return list(dict.fromkeys(f"{one} {two}" if one in _CONTAINERS and two else one for one, two in found))
