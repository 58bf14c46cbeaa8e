"""Views: ``monitoring.status`` as JSON, and for Prometheus; they render, and decide only who may look.

Errors are JSON too, ``{"error": CODE, "message": TEXT}``, never a redirect to a login page: the readers are programs.
403 ``forbidden``, 501 ``not_installed`` (prometheus_client), 503 ``unavailable`` (Redis), 500 ``misconfigured``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from celery_streams import BrokerError, ConfigurationError, streams_of
from celery_streams.monitoring.status import collect

from .permissions import status_permission
from .project import project_app

__all__ = ("metrics", "status")

View = Callable[[HttpRequest], HttpResponse]


def _guarded(view: View) -> View:
    """Let the view run only for those who may see the status, and turn what goes wrong into JSON."""

    @never_cache
    @require_safe
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponse:
        if not status_permission()(request):
            return _error(
                403, "forbidden", "Only staff, or whom CELERY_STREAMS_STATUS_PERMISSION lets in, may see this."
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
