"""The errors of celery-streams, and nothing else.

::

    CeleryStreamsError
    ├── ConfigurationError            a setting, URL or option is wrong (also a ValueError)
    ├── MessageError                  an entry cannot be decoded into a task message
    │   └── CannotRun                 no worker would run the message: it expired, or was revoked
    │       └── HolderThere           its task is unique, and another message holds its lock
    ├── LimitKeyError                 the key of a task's limit, or of its lock, cannot be told (also a ValueError)
    ├── DuplicateTask                 a message of the unique task is there already; nothing was stored
    └── BrokerError                   Redis did not do what was asked (also kombu's OperationalError)
        ├── BrokerUnavailable         no connection, time-out, loading, failover: worth a retry
        │   └── ReplyLost             the command was sent, and may have been carried out
        ├── BrokerFull                maxmemory reached with the noeviction policy
        ├── LoginRefused              wrong user or password
        ├── NotPermitted              an ACL, or the server, forbids the command or a key
        │   ├── KeyNotPermitted       it forbids a key
        │   └── CommandMissing        the server has no such command, or its provider has taken it out
        ├── ClusterNode               the server is a node of a Redis Cluster (also a ConfigurationError)
        ├── DatabaseRefused           the server has only database 0 (also a ConfigurationError)
        ├── ScriptsRefused            the server runs no Lua scripts (also a ConfigurationError)
        ├── SlotElsewhere             another node of the Redis Cluster serves the key
        ├── KeyMissing                there is no such key
        ├── KeyOfOtherType            the key holds a value of another type
        ├── GroupMissing              there is no such stream or consumer group
        ├── GroupExists               the consumer group is there already
        └── QueueFull                 streams_max_length reached (backpressure)

Whoever catches ``kombu.exceptions.OperationalError`` around ``.delay()`` today keeps catching what matters.
"""

from __future__ import annotations

from typing import Any

from kombu.exceptions import OperationalError

__all__ = (
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "CannotRun",
    "CeleryStreamsError",
    "ClusterNode",
    "CommandMissing",
    "ConfigurationError",
    "DatabaseRefused",
    "DuplicateTask",
    "GroupExists",
    "GroupMissing",
    "HolderThere",
    "KeyMissing",
    "KeyNotPermitted",
    "KeyOfOtherType",
    "LimitKeyError",
    "LoginRefused",
    "MessageError",
    "NotPermitted",
    "QueueFull",
    "ReplyLost",
    "ScriptsRefused",
    "ServerIsReplica",
    "SlotElsewhere",
)


class CeleryStreamsError(Exception):
    """Something that celery-streams was asked to do could not be done."""

    def __str__(self) -> str:
        return super().__str__() or (self.__doc__ or "").strip().splitlines()[0]


class ConfigurationError(CeleryStreamsError, ValueError):
    """A setting, URL or option of celery-streams is wrong."""


class MessageError(CeleryStreamsError, ValueError):
    """The entry is not a Celery task message."""


class LimitKeyError(CeleryStreamsError, ValueError):
    """The key of a task's limit, or of its lock, cannot be told."""


class DuplicateTask(CeleryStreamsError):
    """A message of the unique task is there already, and nothing was stored.

    Attributes:
        task_id: id of the task whose message is there.
        duplicate_id: id of the task whose message was not stored.
        in_group: it belongs to a group or chord, which cannot do without it.
        replaced: it took the place of the one that was there, and its id.
        waits: the one that is there was delayed or held back.
    """

    def __init__(
        self,
        text: str,
        task_id: str = "",
        duplicate_id: str = "",
        in_group: bool = False,
        replaced: bool = False,
        waits: bool = False,
    ) -> None:
        super().__init__(text)
        self.waits = waits
        self.task_id = task_id
        self.duplicate_id = duplicate_id
        self.in_group = in_group
        self.replaced = replaced

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.task_id, self.duplicate_id, self.in_group, self.replaced, self.waits)


class CannotRun(MessageError):
    """No worker would run the message: it expired, or was revoked."""


class HolderThere(CannotRun):
    """The task is unique, and another message holds its lock."""


class BrokerError(CeleryStreamsError, OperationalError):
    """Redis refused or failed the command."""

    def of_publish(self, queue: str) -> BrokerError:
        """Return an error of the same class that says which queue the message was for."""
        return type(self)(f"Cannot publish to queue {queue!r}: {self}")


class BrokerUnavailable(BrokerError):
    """Redis cannot be reached, or is not ready to serve; the same call may succeed later."""


class ServerIsReplica(BrokerUnavailable):
    """The server is a replica, which takes no writes."""


class ReplyLost(BrokerUnavailable):
    """A command was sent to Redis, and its reply was lost: it may have been carried out."""


class BrokerFull(BrokerError):
    """Redis reached maxmemory under the noeviction policy; it accepts no new message."""


class LoginRefused(BrokerError):
    """Redis refused the user or the password."""


class NotPermitted(BrokerError):
    """Redis forbids this user the command or a key."""


class KeyNotPermitted(NotPermitted):
    """Redis forbids this user a key."""


class CommandMissing(NotPermitted):
    """Redis has no such command."""


class ClusterNode(BrokerError, ConfigurationError):
    """The server is a node of a Redis Cluster, which a plain URL does not lead to."""


class SlotElsewhere(BrokerError):
    """Another node of the Redis Cluster serves the key; nothing was carried out.

    Attributes:
        slot: the slot of the key.
        address: host and port of that node.
        only_once: the slot is on its way there, and only this command is to be asked there.
    """

    def __init__(self, text: str, *, slot: int, address: tuple[str, int], only_once: bool) -> None:
        super().__init__(text)
        self.slot = slot
        self.address = address
        self.only_once = only_once


class DatabaseRefused(BrokerError, ConfigurationError):
    """Redis has no database of this number: use database 0."""


class ScriptsRefused(BrokerError, ConfigurationError):
    """Redis runs no Lua scripts, without which streams do not work."""


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

    def of_publish(self, queue: str) -> QueueFull:
        """Return the same error: it names its queue."""
        return self
