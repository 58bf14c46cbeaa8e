"""The errors of celery-streams, and nothing else.

::

    CeleryStreamsError
    ├── ConfigurationError            a setting, URL or option is wrong (also a ValueError)
    ├── MessageError                  an entry cannot be decoded into a task message
    │   └── CannotRun                 no worker would run the message: it expired, or was revoked
    └── BrokerError                   Redis did not do what was asked (also kombu's OperationalError)
        ├── BrokerUnavailable         no connection, time-out, loading, failover: worth a retry
        ├── BrokerFull                maxmemory reached with the noeviction policy
        ├── LoginRefused              wrong user or password
        ├── NotPermitted              an ACL forbids the command or a key
        ├── ClusterNode               the server is a node of a Redis Cluster (also a ConfigurationError)
        ├── KeyMissing                there is no such key
        ├── KeyOfOtherType            the key holds a value of another type
        ├── GroupMissing              there is no such stream or consumer group
        ├── GroupExists               the consumer group is there already
        └── QueueFull                 streams_max_length reached (backpressure)

Whoever catches ``kombu.exceptions.OperationalError`` around ``.delay()`` today keeps catching what matters.
"""

from __future__ import annotations

from kombu.exceptions import OperationalError

__all__ = (
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "CannotRun",
    "CeleryStreamsError",
    "ClusterNode",
    "ConfigurationError",
    "GroupExists",
    "GroupMissing",
    "KeyMissing",
    "KeyOfOtherType",
    "LoginRefused",
    "MessageError",
    "NotPermitted",
    "QueueFull",
)


class CeleryStreamsError(Exception):
    """Something that celery-streams was asked to do could not be done."""

    def __str__(self) -> str:
        return super().__str__() or (self.__doc__ or "").strip().splitlines()[0]


class ConfigurationError(CeleryStreamsError, ValueError):
    """A setting, URL or option of celery-streams is wrong."""


class MessageError(CeleryStreamsError, ValueError):
    """The entry is not a Celery task message."""


class CannotRun(MessageError):
    """No worker would run the message: it expired, or was revoked."""


class BrokerError(CeleryStreamsError, OperationalError):
    """Redis refused or failed the command."""


class BrokerUnavailable(BrokerError):
    """Redis cannot be reached, or is not ready to serve; the same call may succeed later."""


class BrokerFull(BrokerError):
    """Redis reached maxmemory under the noeviction policy; it accepts no new message."""


class LoginRefused(BrokerError):
    """Redis refused the user or the password."""


class NotPermitted(BrokerError):
    """Redis forbids this user the command or a key."""


class ClusterNode(BrokerError, ConfigurationError):
    """The server is a node of a Redis Cluster, which is not supported yet."""


class KeyMissing(BrokerError):
    """There is no such key."""


class KeyOfOtherType(BrokerError):
    """The key holds a value of another type."""


class GroupMissing(BrokerError):
    """There is no such stream or consumer group."""


class GroupExists(BrokerError):
    """The consumer group is there already."""


class QueueFull(BrokerError):
    """The queue holds streams_max_length messages; nothing was stored."""
