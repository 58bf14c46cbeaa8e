"""Pages: the table of all pages, and what holds for each: who may see it, by which method, and what errors become."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import update_wrapper

from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseNotAllowed
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect

from celery_streams import BrokerError, ConfigurationError

from . import actions, dead, delayed, doctor, held, history, queues, waiting, workers
from .exports import FORMATS
from .look import Look
from .place import Place
from .sentences import error_text

__all__ = ("PAGES", "Page", "urls")

logger = logging.getLogger("celery_streams.dashboard")

View = Callable[..., HttpResponseBase]

_READ, _CHANGE = ("GET", "HEAD"), ("POST",)


@dataclass(frozen=True)
class Page:
    """One page; what changes something asks for its own permission, too."""

    name: str
    route: str
    view: Callable[[Look], HttpResponseBase]
    methods: tuple[str, ...] = _READ
    #: As what else it comes, by ``?format=``.
    formats: tuple[str, ...] = ()
    #: What it changes lies in Redis, which is asked first: nothing is begun, and noted as done, while it is away.
    needs_redis: bool = True


PAGES = (
    Page("queues", "", queues.queues, formats=FORMATS),
    Page("change_queue", "act/", queues.change_queue, _CHANGE),
    Page("dead", "dead/", dead.dead, formats=FORMATS),
    Page("message", "dead/message/", dead.message),
    Page("act", "dead/act/", actions.act, _CHANGE),
    Page("delayed", "delayed/", delayed.delayed, formats=FORMATS),
    Page("delayed_message", "delayed/message/", waiting.delayed_in_full),
    Page("change_delayed", "delayed/act/", delayed.change_delayed, _CHANGE),
    Page("held", "held/", held.held, formats=FORMATS),
    Page("history", "history/", history.history, formats=FORMATS),
    Page("workers", "workers/", workers.workers, formats=FORMATS),
    Page("running_message", "workers/message/", waiting.running_in_full),
    # Its commands go the way of Celery's own, which may be another server.
    Page("change_task", "workers/act/", workers.change_task, _CHANGE, needs_redis=False),
    Page("doctor", "alerts/", doctor.doctor, formats=FORMATS),
)


def urls(
    place_of: Callable[[HttpRequest], Place], *, prefix: str = "", wrap: Callable[[View], View] | None = None
) -> Iterable[URLPattern]:
    """Yield the URL patterns of all pages; ``wrap`` guards each in its own way, as an admin site does."""
    for page in PAGES:
        view = _view(page, place_of)
        yield path(page.route, view if wrap is None else wrap(view), name=prefix + page.name)


def _view(page: Page, place_of: Callable[[HttpRequest], Place]) -> View:
    def view(request: HttpRequest) -> HttpResponseBase:
        look = Look(request, place_of(request), page.name)
        try:
            # Before anything is asked of Redis.
            if not look.may("view_queues"):
                raise PermissionDenied(_("You may not see the queues."))
            if request.method not in page.methods:
                return HttpResponseNotAllowed(page.methods)
            kind = look.text("format")
            if kind and request.method in _READ and kind not in page.formats:
                return _trouble(look, _("No such format"), _no_format(page, kind), 400)
            if request.method == "POST" and page.needs_redis and (error := _why_away(look)):
                text = _("Nothing was done: %(error)s") % {"error": error_text(error)}
                return _trouble(look, _("Redis does not answer"), text, 503, error)
            return page.view(look)
        except BrokerError as exc:
            return _trouble(look, _("Redis does not answer"), error_text(exc), 503, exc)
        except (ConfigurationError, ImproperlyConfigured) as exc:
            return _trouble(look, _("Not configured"), error_text(exc), 500, exc)

    update_wrapper(view, page.view)
    guarded: View = never_cache(csrf_protect(view))
    return guarded


def _why_away(look: Look) -> BrokerError | None:
    try:
        look.streams.broker.clock_ms()
    except BrokerError as exc:
        return exc
    return None


def _no_format(page: Page, kind: str) -> str:
    about = {"kind": kind, "known": ", ".join(page.formats)}
    if not page.formats:
        return str(_("This page cannot be had as “%(kind)s”.") % about)
    return str(_("This page cannot be had as “%(kind)s”; there are: %(known)s.") % about)


def _trouble(look: Look, title: str, text: str, status: int, error: object = None) -> HttpResponse:
    logger.warning("The page %s cannot be shown: %s", look.page, error or text)
    try:
        return look.answer("message_only.html", title, {"text": text, "back": look.place.url("queues")}, status=status)
    except ImproperlyConfigured as exc:  # no templates, or a hook that cannot be imported
        return HttpResponse(f"{text}\n{exc}\n", status=500, content_type="text/plain; charset=utf-8")
