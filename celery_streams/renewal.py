"""renewal: when a connection makes place for a new one: before its token ends, and before a network forgets it.

Managed servers take tokens for passwords (AWS IAM, Entra, Google), which a credential provider of redis-py's gives out.
It is asked at each connect; a connection that got in stays in until its server cuts it, in the middle of anything.
So each connection has a greatest age, and whoever is about to use it asks here first.
"""

from __future__ import annotations

import math
import time
from typing import Any

import redis

from .chance import chance

__all__ = ("UNUSED_AT_MOST", "connect", "greatest_age", "has_tokens", "is_old", "read_at_most")

#: Seconds: greatest age of a connection whose password comes from a provider. The shortest-lived are Entra's and
#: Google's tokens, of an hour; three quarters of it leave time for a server whose clock is ahead.
TOKEN_AGE = 2_700.0

#: Seconds after which a connection that nobody used is not used again: Heroku cuts such after 300 s, NAT gateways
#: forget them after 350 s, some without a word, and then the next command waits for its time-out.
UNUSED_AT_MOST = 240.0

#: Connections that were opened together do not all end together: the youngest is replaced at this share of the age.
_EARLIEST = 0.9

#: Share of the age for which one read may block, so that there is always room for a whole read.
_READ = 0.4


def has_tokens(pool: Any) -> bool:
    """Return whether the connections of redis-py's ``pool`` ask a credential provider for their password."""
    return pool.connection_kwargs.get("credential_provider") is not None


def greatest_age(pool: Any, given: float | None) -> float:
    """Return seconds after which a connection is replaced: what the setting says, or what its login is good for."""
    if given is not None:
        return given
    return TOKEN_AGE if has_tokens(pool) else math.inf


def connect(connection: Any, age: float) -> None:
    """Open one of redis-py's connections, and note when it will be old.

    Raises:
        redis.RedisError, OSError: as redis-py does; also where the credential provider failed.
    """
    try:
        connection.connect()
    except (redis.RedisError, OSError):
        raise
    except Exception as exc:
        # The code of the provider: what it cannot do now, for its own service is away, it may do at the next connect.
        connection.disconnect()
        if connection.credential_provider is None:
            raise
        raise redis.ConnectionError(f"the credential provider failed: {type(exc).__name__}: {exc}") from exc
    connection.old_at = time.monotonic() + age * chance.uniform(_EARLIEST, 1.0)


def is_old(connection: Any, *, lasting: float = 0.0) -> bool:
    """Return whether an open connection is too old, or will be within ``lasting`` seconds."""
    return time.monotonic() + lasting >= getattr(connection, "old_at", math.inf)


def read_at_most(block_ms: int, age: float) -> int:
    """Return how many of ``block_ms`` milliseconds a read may block on connections that live for ``age`` seconds."""
    return int(min(block_ms, age * _READ * 1000))
