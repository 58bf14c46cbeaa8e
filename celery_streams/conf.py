"""StreamsConf: the ``streams_*`` settings, read from ``app.conf`` and the environment, checked once.

It decides nothing about messages and opens no connection. ``streams_enabled`` is the exception to "once": it is the
switch, so :func:`is_enabled` reads it at each publish.

Sources, strongest first: the environment variable ``CELERY_STREAMS_X``; ``app.conf.streams_x`` (in Django
``CELERY_STREAMS_X`` with ``namespace="CELERY"``); the default. Settings are read with a default rather than added
with ``app.add_defaults``: on Celery 5.7 the latter shadows namespaced user settings.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from kombu.utils.imports import symbol_by_name

from . import keys, setting_values
from .exceptions import ConfigurationError
from .partitions import queue_of
from .queue_choice import QueueChoice
from .said import Said, say
from .spelling import misspelt, nearest

__all__ = (
    "DJANGO_SETTINGS",
    "ENV_PREFIX",
    "SETTINGS",
    "Alerts",
    "QueueChoice",
    "SettingInForce",
    "StreamsConf",
    "is_enabled",
    "misspelt_settings",
    "plain_switch",
    "settings_in_force",
    "unknown_settings",
)

#: Environment variables of this form override the settings.
ENV_PREFIX = "CELERY_STREAMS_"

#: Its part before the name of the setting, in lower case; also the namespace that Django projects use for Celery.
ENV_NAMESPACE = "celery_"


@dataclass(frozen=True, slots=True)
class Alerts:
    """Thresholds (``streams_alerts``) from which the status says warning or critical; None switches one off."""

    #: Messages that wait, per queue.
    backlog_warning: int | None = 1_000
    backlog_critical: int | None = 10_000
    #: Age of the oldest message that waits, in seconds.
    age_warning: float | None = 60.0
    age_critical: float | None = 600.0
    #: Dead letters, per queue.
    dead_warning: int | None = 1
    dead_critical: int | None = 100
    #: Dead letters that came within the time that ``celery-streams alerts`` looks back.
    dead_growing_warning: int | None = 1
    dead_growing_critical: int | None = 50
    #: Messages by which a backlog grew within that time, if it is one (``backlog_warning``).
    backlog_growing_warning: int | None = 1_000
    backlog_growing_critical: int | None = None
    #: Messages that are being run or held by consumers, per queue.
    pending_warning: int | None = 1_000
    pending_critical: int | None = 10_000
    #: Messages that wait, or that a dead worker holds, in a queue which no living worker consumes.
    no_consumer_warning: int | None = None
    no_consumer_critical: int | None = 1
    #: Workers of a queue that were killed or cannot reach Redis, while no living one consumes it.
    dead_worker_warning: int | None = 1
    dead_worker_critical: int | None = None
    #: Children of its workers that crashed within the last ten minutes.
    restart_loop_warning: int | None = 3
    restart_loop_critical: int | None = 10
    #: Messages on Celery's list of a queue, which no stock worker consumes.
    no_stock_worker_warning: int | None = None
    no_stock_worker_critical: int | None = 1
    #: Messages on Celery's list of a queue where publishers write (a share) of its messages.
    list_backlog_warning: int | None = 1_000
    list_backlog_critical: int | None = 10_000
    #: Messages on Celery's list of a queue whose publishers should all write to the stream, while a stock worker
    #: consumes the list, or nobody knows.
    list_filling_warning: int | None = 100
    list_filling_critical: int | None = None
    #: Seconds by which the earliest delayed message is late: nobody promotes.
    overdue_warning: float | None = 5.0
    overdue_critical: float | None = 60.0
    #: Seconds for which a queue has been paused.
    paused_warning: float | None = 3_600.0
    paused_critical: float | None = None


@dataclass(frozen=True, slots=True)
class StreamsConf:
    """The settings of one app; MIGRATION.md has the table for users."""

    #: Redis of the streams; None is the broker's.
    url: str | None = None
    queues: QueueChoice = field(default_factory=QueueChoice)
    key_prefix: str = keys.DEFAULT_PREFIX
    #: Seconds an entry may go without a heartbeat before another worker claims it.
    visibility_timeout: float = 15.0
    #: Acknowledge after the task ran; False honours each task's own ``acks_late``.
    acks_late: bool = True
    #: Deliveries that ended in a crash before the message is dead-lettered.
    delivery_limit: int = 5
    #: Dead-letter tasks that failed for good.
    dead_letter_failures: bool = True
    dead_letter_max_length: int | None = 10_000
    #: Bytes of memory that the dead letters of a queue may take; None is no bound.
    dead_letter_max_memory: int | None = 256 * 1024 * 1024
    #: Seconds a dead letter is kept; None keeps it for ever.
    dead_letter_ttl: float | None = 30 * 86_400.0
    #: Seconds after which a connection is replaced; None: where a credential provider gives tokens, in time.
    max_connection_age: float | None = None
    #: Messages a queue may hold before publishing raises QueueFull; None is no bound.
    max_length: int | None = None
    #: Hold what is published in a database transaction until it commits: True for all databases, or aliases.
    publish_on_commit: bool | tuple[str, ...] = False
    #: Seconds a message for an unknown task is put back before it is dead-lettered.
    unknown_task_ttl: float = 600.0
    #: ``worker`` (Celery's meaning) or ``global`` (the sum over all workers).
    rate_limit_scope: str = "worker"
    #: Write entries without what goes without saying; off only where a tool of one's own reads them from Redis.
    compact_messages: bool = True
    #: Export ``celery_queue_length``, as celery-exporter names what it reads of lists.
    celery_queue_length: bool = False
    #: Workers count outcomes, waits and run times for the history, with or without ``--metrics-port``.
    count_tasks: bool = False
    #: Task -> its limits, by their names without prefix; checked where the task is known (``limits``).
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Queue -> over how many partitions its messages are spread, where that is more than one.
    partitions: Mapping[str, int] = field(default_factory=dict)
    #: Whose tasks' states are kept: True for all, or names and shell patterns; a task's own option goes before.
    track: bool | tuple[str, ...] = False
    #: Seconds for which the state of a task that is done is kept; None is Celery's ``result_expires``.
    track_ttl: float | None = None
    alerts: Alerts = field(default_factory=Alerts)
    #: ``priority_steps`` of ``broker_transport_options``.
    priority_steps: tuple[int, ...] = keys.DEFAULT_STEPS

    @classmethod
    def from_app_conf(cls, conf: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> StreamsConf:
        """Read and check all settings.

        Raises:
            ConfigurationError: a value is out of range, or a name is unknown (the nearest known one is suggested).
        """
        _check_names(conf, environ)
        values: dict[str, Any] = {}
        for name, convert in _CONVERTERS.items():
            raw = environ.get(ENV_PREFIX + name.upper())
            if raw is None:
                raw = _setting(conf, "streams_" + name)
                if raw is None and "streams_" + name not in conf:
                    continue
            values[name] = convert("streams_" + name, raw)
        options = conf.get("broker_transport_options") or {}
        steps = options.get("priority_steps")
        if steps:
            values["priority_steps"] = setting_values.steps("priority_steps of broker_transport_options", steps)
        prefix = options.get("global_keyprefix")
        if prefix:
            values["key_prefix"] = f"{prefix}{values.get('key_prefix', keys.DEFAULT_PREFIX)}"
        return cls(**values)

    def tracks(self, task: str) -> bool:
        """Return whether the settings say that the states of a task are kept."""
        if isinstance(self.track, bool):
            return self.track
        return any(pattern == task or fnmatchcase(task, pattern) for pattern in self.track)

    def max_length_of(self, name: str) -> int | None:
        """Return how many messages a queue may hold; of a partition, its share."""
        if self.max_length is None or not self.partitions:
            return self.max_length
        return math.ceil(self.max_length / self.partitions.get(queue_of(name), 1))

    def queue_keys(self, queue: str) -> keys.QueueKeys:
        """Return the Redis keys of ``queue``."""
        return keys.queue_keys(self.key_prefix, queue, self.priority_steps)


def is_enabled(conf: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> bool:
    """Return the switch as it stands now (``streams_enabled``: a boolean, a callable or its dotted path).

    Raises:
        ConfigurationError: the value is none of these.
    """
    raw: Any = environ.get("CELERY_STREAMS_ENABLED")
    if raw is None:
        raw = _setting(conf, "streams_enabled", False)
    return _switch(raw)


def plain_switch(conf: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> bool | None:
    """Return the switch where it can only change with the settings or environment; None where a function decides."""
    raw: Any = environ.get("CELERY_STREAMS_ENABLED")
    if raw is None:
        raw = _setting(conf, "streams_enabled", False)
    if isinstance(raw, str):
        return setting_values.WORDS.get(raw.strip().lower())
    return bool(raw) if raw is None or isinstance(raw, int) else None


def _switch(raw: Any) -> bool:
    if raw is True or raw is False:
        return raw
    if callable(raw):
        return bool(raw())
    if raw is None:
        return False
    if isinstance(raw, str):
        word = raw.strip().lower()
        if word in setting_values.WORDS:
            return setting_values.WORDS[word]
        if "." in word or ":" in word:
            try:
                return bool(symbol_by_name(raw.strip())())
            except (ImportError, AttributeError, TypeError) as exc:
                raise ConfigurationError(f"streams_enabled names {raw!r}, which cannot be called: {exc}") from exc
    elif isinstance(raw, int):
        return bool(raw)
    raise ConfigurationError(f"streams_enabled must be True, False, a callable or its dotted path, got {raw!r}")


def _choice(name: str, raw: Any) -> QueueChoice:
    return QueueChoice.parse(raw)


def _alerts(name: str, raw: Any) -> Alerts:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError as exc:
            raise ConfigurationError(f"{name} is not valid JSON: {exc}") from exc
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{name} must be a mapping of threshold to number, got {raw!r}")
    known = [item.name for item in fields(Alerts)]
    for key in raw:
        if key not in known:
            raise ConfigurationError(f"{name} has no threshold {key!r}{nearest(str(key), known)}")
    return Alerts(**{key: _threshold(f"{name}[{key!r}]", value) for key, value in raw.items()})


def _threshold(name: str, raw: Any) -> Any:
    return None if raw is None else setting_values.number(name, raw, int if isinstance(raw, int) else float, 0.0)


_CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    "url": setting_values.text,
    "queues": _choice,
    "key_prefix": setting_values.prefix,
    "visibility_timeout": setting_values.visibility,
    "acks_late": setting_values.boolean,
    "delivery_limit": setting_values.count,
    "dead_letter_failures": setting_values.boolean,
    "dead_letter_max_length": setting_values.optional_count,
    "dead_letter_max_memory": setting_values.optional_count,
    "dead_letter_ttl": setting_values.optional_seconds,
    "max_connection_age": setting_values.optional_age,
    "max_length": setting_values.optional_count,
    "publish_on_commit": setting_values.databases,
    "unknown_task_ttl": setting_values.seconds,
    "rate_limit_scope": setting_values.scope,
    "compact_messages": setting_values.boolean,
    "celery_queue_length": setting_values.boolean,
    "count_tasks": setting_values.boolean,
    "limits": setting_values.limits,
    "partitions": setting_values.partitions,
    "track": setting_values.tracked,
    "track_ttl": setting_values.optional_seconds,
    "alerts": _alerts,
}

#: All settings that users may write, without those that ``install`` keeps for itself.
SETTINGS: tuple[str, ...] = ("streams_enabled", *("streams_" + name for name in _CONVERTERS))

#: What :func:`settings_in_force` shows where nothing was written; as people would write it.
_DEFAULTS: dict[str, Any] = {
    "streams_enabled": False,
    "streams_queues": "*",
    **{
        f"streams_{item.name}": item.default
        for item in fields(StreamsConf)
        if item.name in _CONVERTERS and isinstance(item.default, (str, int, float, type(None)))
    },
}

#: Settings that only ``django_integration`` reads, from Django's settings.
DJANGO_SETTINGS: tuple[str, ...] = (
    "streams_status_permission",
    "streams_dashboard_permission",
    "streams_dashboard_read_only",
    "streams_hide_arguments",
    "streams_redact_arguments",
    "streams_task_permission",
    "streams_task_events",
)


def _setting(conf: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return a setting; what the program set comes first, which Celery before 5.7 puts behind a namespaced setting."""
    changes = getattr(conf, "changes", None) or {}
    return changes[key] if key in changes else conf.get(key, default)


def unknown_settings(conf: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the settings and environment variables that look like ours and are not: name -> the error message.

    The suggestion has the form in which the user wrote the name.
    """
    namespace = (getattr(conf, "prefix", None) or ENV_NAMESPACE).lower()
    return {
        **_unknown_names(environ, (ENV_NAMESPACE,)),
        **_unknown_names(conf, (ENV_NAMESPACE, namespace, "")),
    }


def _unknown_names(names: Iterable[Any], namespaces: tuple[str, ...]) -> dict[str, str]:
    known = {*SETTINGS, *DJANGO_SETTINGS, "streams_amqp_cls", "streams_control_cls"}
    found: dict[str, str] = {}
    for name in names:
        plain = str(name).lower()
        space = next((space for space in namespaces if plain.startswith(space + "streams_")), None)
        if space is None or plain[len(space) :] in known or (not space and name != plain):
            continue
        written = {space + setting for setting in known}
        if name.isupper():
            written = {setting.upper() for setting in written}
        found[name] = f"Unknown setting {name!r}{nearest(name, sorted(written))}"
    return found


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """A setting as it is in force, unchecked, and where it was written."""

    name: str
    value: Any
    source: str


def settings_in_force(conf: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> tuple[SettingInForce, ...]:
    """Return all settings: what the environment says wins over what the configuration says."""
    _setting(conf, "streams_enabled")  # what reads the configuration, which tells the prefix
    prefix = getattr(conf, "prefix", None)
    found = []
    for name in SETTINGS:
        variable = ENV_NAMESPACE.upper() + name.upper()
        if variable in environ:
            found.append(SettingInForce(name, environ[variable], f"environment variable {variable}"))
        elif name in (getattr(conf, "changes", None) or {}):
            found.append(SettingInForce(name, _setting(conf, name), "app.conf or install()"))
        elif name in conf:
            written = f"{prefix}{name.upper()}" if prefix else name
            found.append(SettingInForce(name, _setting(conf, name), f"setting {written}"))
        else:
            found.append(SettingInForce(name, _DEFAULTS.get(name), "default"))
    return tuple(found)


def misspelt_settings(conf: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Said]:
    """Return what nobody reads and is nearly the name of one of our settings: name -> a sentence with that name.

    For example the environment variable ``CELERY_STREAM_URL``. Unlike :func:`unknown_settings` it may be somebody
    else's, so that it is said and no error.
    """
    namespace = (getattr(conf, "prefix", None) or ENV_NAMESPACE).lower()
    found: dict[str, Said] = {}
    for name in environ:
        if name.isupper():
            _compare(name, ENV_NAMESPACE, found)
    for name in map(str, conf):
        _compare(name, namespace if name.lower().startswith(namespace) else "", found)
    return found


def _compare(name: str, space: str, found: dict[str, Said]) -> None:
    plain = name.lower()
    if plain.startswith(space + "streams_"):
        return  # ours, or an unknown one of ours
    near = _near(plain, space)
    if near is not None:
        shown = near.upper() if name.isupper() else near
        found[name] = say(
            "%(name)s is not a setting and has no effect; did you mean %(near)s?", name=name, near=repr(shown)
        )


@lru_cache(maxsize=4_096)
def _near(plain: str, space: str) -> str | None:
    """Return what ``misspelt`` finds, which takes 0.1 ms: the status asks for hundreds of names each time."""
    return misspelt(plain, [space + setting for setting in (*SETTINGS, *DJANGO_SETTINGS)])


def _check_names(conf: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    for message in unknown_settings(conf, environ).values():
        raise ConfigurationError(message)
