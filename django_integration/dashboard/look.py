"""Look: one request to the dashboard, with who asks and what they may, and how its answer is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.templatetags.static import static
from django.utils.cache import get_conditional_response
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from celery_streams import BrokerError, Streams, __version__, streams_of
from celery_streams.printable import printable

from ..permissions import ACTIONS, LOOKS, dashboard_permission
from ..project import project_app
from .place import Place

__all__ = ("Look", "is_read_only")

#: Seconds between two looks of a page that stays up to date.
POLL = 5

#: The pages that stand in the menu, with their titles.
_MENU: tuple[tuple[str, Callable[[], str]], ...] = (
    ("queues", lambda: _("Queues")),
    ("dead", lambda: _("Dead letters")),
    ("delayed", lambda: _("Delayed")),
    ("held", lambda: _("Held")),
    ("history", lambda: _("History")),
    ("workers", lambda: _("Workers")),
    ("doctor", lambda: _("Alerts")),
)


def is_read_only() -> bool:
    """Return whether nobody may change anything (``CELERY_STREAMS_DASHBOARD_READ_ONLY``)."""
    return bool(getattr(settings, "CELERY_STREAMS_DASHBOARD_READ_ONLY", False))


@dataclass
class Look:
    """One request."""

    request: HttpRequest
    place: Place
    #: The name of the page.
    page: str

    @cached_property
    def streams(self) -> Streams:
        """What the project's Celery app knows of streams.

        Raises:
            ImproperlyConfigured: the project has no Celery app.
        """
        return streams_of(project_app())

    @cached_property
    def _allowed(self) -> dict[str, bool]:
        test = dashboard_permission(in_admin=self.place.admin_site is not None)
        changes = not is_read_only()
        return {action: (changes or action in LOOKS) and bool(test(self.request, action)) for action in ACTIONS}

    def may(self, action: str) -> bool:
        """Return whether the user may do ``action``; nobody may change anything in read-only mode."""
        return self._allowed[action]

    def text(self, name: str, *, most: int = 500) -> str:
        """Return a parameter of the form or the address, stripped, and cut to ``most`` characters."""
        source = self.request.POST if self.request.method == "POST" else self.request.GET
        return str(source.get(name, "")).replace("\0", "").strip()[:most]

    def number(self, name: str, *, least: int = 0, most: int = 10**9) -> int:
        """Return a parameter as a whole number between ``least`` and ``most``; ``least`` for what is none."""
        text = self.text(name, most=20)
        return min(max(int(text), least), most) if text.isdecimal() and text.isascii() else least

    def exported(self, error: str = "") -> str:
        """Return as which kind of file the list is asked for; empty: as a page.

        Args:
            error: why there are no figures of now: a program must not take those of a while ago for them.

        Raises:
            BrokerError: of ``error``, if a file is asked for.
        """
        kind = self.text("format", most=10)
        if kind and error:
            raise BrokerError(error)
        return kind

    def answer(
        self,
        template: str,
        title: str,
        context: Mapping[str, Any],
        *,
        state: Any = None,
        status: int = 200,
    ) -> HttpResponse:
        """Render a page.

        Args:
            state: what the page shows, without ages, as JSON takes it (what it does not take by its ``repr``). The
                page's ETag is made of it, for each body differs by its CSRF token; a browser that has the same state
                gets 304. None: the page has no tag.
        """
        tag = None if state is None else self._tag(state)
        if tag is not None:
            unchanged = get_conditional_response(self.request, etag=tag)
            if unchanged is not None:
                return unchanged
        allowed = {action: self.may(action) for action in ACTIONS}
        menu = [
            {"name": name, "title": text(), "url": self.place.url(name), "here": name == self.page}
            for name, text in _MENU
        ]
        response = render(
            self.request,
            self.place.template,
            {
                **self.place.context(self.request),
                "title": printable(title),
                "page": f"celery_streams/{template}",
                "poll": POLL if state is not None else "",
                "menu": menu,
                "may": allowed,
                "read_only": is_read_only(),
                "version": __version__,
                "here": self.request.get_full_path(),
                "home": self.place.url("queues"),
                **context,
            },
            status=status,
        )
        if tag is not None:
            response["ETag"] = tag
        self._guard(response)
        return response

    def gone(self, title: str, text: str, back: str) -> HttpResponse:
        """Say that what the page is about is not there, or no longer: 404, which an open page takes over."""
        return self.answer("message_only.html", title, {"text": text, "back": back}, status=404)

    def _tag(self, state: Any) -> str:
        about = (
            getattr(getattr(self.request, "user", None), "pk", None),
            sorted(self._allowed.items()),
            get_language(),
            self.request.get_full_path(),
            __version__,
            state,
        )
        return f'"{hashlib.sha256(json.dumps(about, default=repr, sort_keys=True).encode()).hexdigest()[:32]}"'

    def _guard(self, response: HttpResponse) -> None:
        """Say what the page may load, where the project does not: hostile names could not do anything even then."""
        if "django.middleware.csp.ContentSecurityPolicyMiddleware" in settings.MIDDLEWARE:
            return
        if self.place.admin_site is not None and "unfold" in settings.INSTALLED_APPS:
            return  # its own scripts and styles stand inside its pages
        found = urlsplit(static("celery_streams/dashboard.css"))
        files = f"'self' {found.scheme or 'https'}://{found.netloc}" if found.netloc else "'self'"
        response.setdefault(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {files}; style-src {files}; img-src {files}; font-src {files}; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        )
