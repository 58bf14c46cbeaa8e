"""Views: ``monitoring.status`` as JSON, and for Prometheus, and the state of a task; they decide only who may look.

Errors are JSON too, ``{"error": CODE, "message": TEXT}``, never a redirect to a login page: the readers are programs.
403 ``forbidden``, 404 ``not_found`` (a task that is unknown or not theirs, which nobody can tell apart), 501
``not_installed`` (prometheus_client), 503 ``unavailable`` (Redis) or ``too_many`` (streams of events), 500
``misconfigured``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.utils.cache import get_conditional_response
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from celery_streams import BrokerError, ConfigurationError, streams_of
from celery_streams.monitoring.status import collect
from celery_streams.states import look

from .permissions import status_permission, task_permission
from .project import project_app
from .task_events import LAST, EventStream, Said, TaskLook, most_streams, places, said_of, wants_events

__all__ = ("metrics", "status", "task")

logger = logging.getLogger(__name__)

View = Callable[[HttpRequest], HttpResponse]


def _guarded(view: View) -> View:
    """Let the view run only for those who may see the status, and turn what goes wrong into JSON."""

    @never_cache
    @require_safe
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        if not status_permission()(request):
            return _error(
                403,
                "forbidden",
                "Only staff and users that CELERY_STREAMS_STATUS_PERMISSION allows may see this page.",
            )
        try:
            return view(request)
        except BrokerError as exc:
            return _error(503, "unavailable", str(exc))
        except (ConfigurationError, ImproperlyConfigured) as exc:
            return _error(500, "misconfigured", str(exc))

    return cast(View, guarded)


def _error(status: int, code: str, message: str) -> JsonResponse:
    return JsonResponse({"error": code, "message": message}, status=status)


@_guarded
def status(request: HttpRequest) -> HttpResponse:
    """Return the status of all queues, or of those given as ``?queue=NAME`` (once or more)."""
    found = collect(streams_of(project_app()), request.GET.getlist("queue") or None)
    return JsonResponse(found.as_dict(), json_dumps_params={"indent": 2})


@_guarded
def metrics(request: HttpRequest) -> HttpResponse:
    """Return the gauges in Prometheus' text format; ``celery_streams_up 0`` when Redis is away.

    A scraper has no session: give it a token, and test it in ``CELERY_STREAMS_STATUS_PERMISSION``.
    """
    try:
        # Here, because a project without Prometheus has no such package.
        from celery_streams.monitoring.prometheus import CONTENT_TYPE, exposition
    except ImportError as exc:
        return _error(501, "not_installed", str(exc))
    return HttpResponse(exposition(streams_of(project_app())), content_type=CONTENT_TYPE)


@require_safe
def task(request: HttpRequest, task_id: str) -> HttpResponseBase:
    """Return the state of a tracked task to whom ``CELERY_STREAMS_TASK_PERMISSION`` allows it; for polling by ETag.

    What is not theirs is 404, as is what nobody knows. Errors say nothing of the project, for its own users read them.
    Who asks for events gets them where there are any (``task_events``), else the state as it is now.
    """
    try:
        found = look(project_app(), task_id)
        # Asked about a task that is unknown, too: the answer must not tell one from the other by the time it takes.
        may_see = task_permission()(request, task_id, dict(found.headers))
        streams = wants_events(request)
    except BrokerError as exc:
        logger.warning("Cannot tell the state of task %s: %s", task_id, exc)
        return _task_error(503, "unavailable", "The state cannot be told at the moment.")
    except (ConfigurationError, ImproperlyConfigured) as exc:
        logger.error("Cannot tell the state of task %s: %s", task_id, exc)
        return _task_error(500, "misconfigured", "The state cannot be told.")
    if not may_see or found.state.state == "unknown":
        return _task_error(404, "not_found", "There is no such task.")
    if streams:
        return _events(request, said_of(found))
    tag, said = said_of(found)
    response = get_conditional_response(request, etag=f'"{tag}"') or JsonResponse(said)
    response["ETag"] = f'"{tag}"'
    response["Cache-Control"] = "private, no-cache"  # kept, and asked about each time
    return response


def _events(request: HttpRequest, said: Said) -> HttpResponseBase:
    known = request.headers.get("Last-Event-ID", "")
    if said[1]["state"] in LAST and known == said[0]:
        return HttpResponse(status=204)  # nothing comes any more: a browser does not ask again
    user = getattr(getattr(request, "user", None), "pk", None)
    if not places.take(user, most=most_streams()):
        response: HttpResponseBase = _task_error(
            503, "too_many", "Too many streams are open; ask for the state instead."
        )
        response["Retry-After"] = "30"
        return response
    stream = EventStream(said, TaskLook(said[1]["task_id"]), give_back=partial(places.give_back, user), known=known)
    response = StreamingHttpResponse(stream, content_type="text/event-stream")
    response["Cache-Control"] = "no-store, no-transform"
    response["X-Accel-Buffering"] = "no"  # nginx
    return response


def _task_error(status: int, code: str, message: str) -> JsonResponse:
    response = _error(status, code, message)
    response["Cache-Control"] = "no-store"
    return response
