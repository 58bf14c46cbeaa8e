"""System checks: what is wrong with the settings, without connecting to anything.

==================  ==================================================================================================
``E001``            a setting has a wrong value
``E002``            there is no such setting
``E003``            streams are on, and the URL is not one of a Redis
``E004``            a callable that a Django setting names cannot be imported or called, or is ``async def``
``W001``            the project has no Celery app
``W002``            the Celery app does not read the ``CELERY_STREAMS_...`` settings
``W003``            a setting or variable is nearly one of ours, and nobody reads it
``W004``            ``streams_queues`` names a queue that nothing has, and that is nearly one that something has
``I001``            caches share the Redis database of the streams
``I002``            a script that imports the Celery app without ``django.setup()`` publishes to lists
==================  ==================================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.core.exceptions import ImproperlyConfigured

from celery_streams import ConfigurationError, streams_of
from celery_streams.conf import DJANGO_SETTINGS, SETTINGS, StreamsConf, is_enabled, misspelt_settings, unknown_settings
from celery_streams.monitoring.names import unknown_names
from celery_streams.redis_url import place

from . import project
from .permissions import HOOKS, hook
from .task_events import most_streams

__all__ = ("check_celery_streams",)

#: What each callable that a Django setting names is called with, and what it returns.
_TAKES = {
    "CELERY_STREAMS_STATUS_PERMISSION": "the request and returns whether it may be answered",
    "CELERY_STREAMS_DASHBOARD_PERMISSION": "the request and the name of an action and returns whether it is allowed",
    "CELERY_STREAMS_REDACT_ARGUMENTS": "a task's name, its args and kwargs, and returns args and kwargs to show",
    "CELERY_STREAMS_TASK_PERMISSION": "the request, a task id and its message's headers and returns whether to answer",
}

_CONFIGURE = 'app.config_from_object("django.conf:settings", namespace="CELERY")'


def check_celery_streams(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Return all findings."""
    return [*_permission(), *_task_events(), *_app()]


def _app() -> Iterator[CheckMessage]:
    try:
        app = project.project_app()
    except ImproperlyConfigured as exc:
        yield Warning(
            str(exc),
            hint=f"Create one in the package of the settings, in celery.py, with {_CONFIGURE}.",
            id="celery_streams.W001",
        )
        return
    yield from _delivery(app)
    wrong = [*_names(app), *_values(app)]
    yield from wrong
    if not wrong:
        yield from _scripts(app)
        yield from _server(app)
        yield from _misspelt(app)


def _permission() -> Iterator[CheckMessage]:
    for name in HOOKS:
        try:
            hook(name)
        except ImproperlyConfigured as exc:
            yield Error(
                str(exc),
                hint=f"Set it to a function that takes {_TAKES[name]}, or its dotted path.",
                id="celery_streams.E004",
            )


def _task_events() -> Iterator[CheckMessage]:
    try:
        most_streams()
    except ImproperlyConfigured as exc:
        yield Error(
            str(exc), hint="Set it to the number of streams that a process may have open.", id="celery_streams.E001"
        )


def _delivery(app: Celery) -> Iterator[CheckMessage]:
    space = f"{app.namespace}_STREAMS_" if app.namespace and project.reads_django_settings(app) else None
    lost = sorted(
        name
        for name in dir(settings)
        if name.startswith("CELERY_STREAMS_")
        and name.removeprefix("CELERY_").lower() not in DJANGO_SETTINGS
        and not (space and name.startswith(space))
    )
    if lost:
        yield Warning(
            f"The Celery app {app.main!r} does not read these Django settings: {', '.join(lost)}.",
            hint=f"Configure it with {_CONFIGURE}, or set them on app.conf and call celery_streams.install(app).",
            id="celery_streams.W002",
        )


def _names(app: Celery) -> Iterator[CheckMessage]:
    for name, message in sorted(unknown_settings(app.conf).items()):
        where = "environment variable" if name in os.environ else "setting"
        yield Error(_sentence(message), hint=f"Correct or remove the {where} {name}.", id="celery_streams.E002")


def _values(app: Celery) -> Iterator[CheckMessage]:
    values = {name: app.conf.get(name) for name in (*SETTINGS, "broker_transport_options") if name in app.conf}
    variables = {name: os.environ[name] for name in map(_variable, SETTINGS) if name in os.environ}
    try:
        StreamsConf.from_app_conf(values, environ=variables)
        is_enabled(values, environ=variables)
    except ConfigurationError as exc:
        yield Error(f"{exc}.", hint=_where_from(str(exc), app, variables), id="celery_streams.E001")


def _server(app: Celery) -> Iterator[CheckMessage]:
    streams = streams_of(app)
    if not streams.enabled():
        return
    try:
        streams.new_broker()
    except ConfigurationError as exc:
        yield Error(
            f"Streams are enabled, but {exc}.",
            hint="Set CELERY_STREAMS_URL (or CELERY_BROKER_URL) to redis://HOST:PORT/DATABASE.",
            id="celery_streams.E003",
        )
        return
    shared = _caches_at(place(streams.url))
    if shared:
        names = " and ".join(filter(None, (", ".join(map(repr, shared[:-1])), repr(shared[-1]))))
        caches = f"The cache {names} is" if len(shared) == 1 else f"The caches {names} are"
        yield Info(
            f"{caches} in the Redis database of the streams: cache.clear() deletes queued tasks.",
            hint="Give one of them another database number, e.g. CELERY_STREAMS_URL = 'redis://HOST:PORT/2'.",
            id="celery_streams.I001",
        )


def _misspelt(app: Celery) -> Iterator[CheckMessage]:
    for sentence in misspelt_settings(app.conf).values():
        yield Warning(sentence, hint="Correct its name, or silence this.", id="celery_streams.W003")
    for name, near in unknown_names(streams_of(app)).items():
        if near is not None:
            yield Warning(
                f"streams_queues names {name!r}, which no queue, route or task has; did you mean {near!r}?",
                hint=f"Correct the name, or declare the queue {name!r} in task_queues.",
                id="celery_streams.W004",
            )


def _caches_at(ours: tuple[str, int, str]) -> list[str]:
    """Return the aliases of the caches that are in the Redis database of the streams."""
    found = []
    for alias, cache in settings.CACHES.items():
        database = (cache.get("OPTIONS") or {}).get("db", 0)
        if any(place(url, default_database=database) == ours for url in _locations(cache)):
            found.append(alias)
    return found


def _scripts(app: Celery) -> Iterator[CheckMessage]:
    if project.is_installed_by_django_only(app) and streams_of(app).enabled():
        yield Info(
            "The Celery app is on streams only where Django is set up: a script that imports it without django.setup() "
            "publishes to Celery's lists, which no worker reads.",
            hint="Call celery_streams.install(app) in celery.py, after app.config_from_object(...).",
            id="celery_streams.I002",
        )


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def _variable(setting: str) -> str:
    return f"CELERY_{setting.upper()}"


def _where_from(message: str, app: Celery, variables: Mapping[str, str]) -> str:
    name = next((setting for setting in SETTINGS if message.startswith(setting)), None)
    if name is None:
        return "See the settings table of celery-streams."
    if _variable(name) in variables:
        return f"Correct the environment variable {_variable(name)}."
    return f"Correct the setting {f'{app.namespace}_{name.upper()}' if app.namespace else name}."


def _locations(cache: Mapping[str, Any]) -> list[str]:
    found = cache.get("LOCATION") or ()
    urls = found.replace(";", ",").split(",") if isinstance(found, str) else found
    return [str(url).strip() for url in urls if "redis" in str(cache.get("BACKEND", "")).lower()]
