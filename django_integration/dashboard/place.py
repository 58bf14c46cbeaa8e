"""Place: where the pages live, in the admin or under the project's own ``include``, and their addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

__all__ = ("Place",)


@dataclass(frozen=True)
class Place:
    """The admin site, or an instance of ``django_integration.urls``."""

    #: Before the name of a page in the name of its URL.
    prefix: str
    #: The namespace instance, where the same pages are included twice.
    current_app: str | None = None
    admin_site: AdminSite | None = None

    @classmethod
    def in_admin(cls, site: AdminSite) -> Place:
        """Return the place in an admin site."""
        return cls("admin:celery_streams_", site.name, site)

    @classmethod
    def outside(cls, request: HttpRequest) -> Place:
        """Return the place that answers ``request``."""
        namespace = request.resolver_match.namespace if request.resolver_match else "celery_streams"
        return cls(f"{namespace}:" if namespace else "", namespace or None)

    @property
    def template(self) -> str:
        """The template that the pages extend."""
        return f"celery_streams/base_{'page' if self.admin_site is None else 'admin'}.html"

    def url(self, page: str, **query: Any) -> str:
        """Return the address of a page; what is empty in ``query`` is left out."""
        words = urlencode({name: value for name, value in query.items() if value not in (None, "", False)}, doseq=True)
        address = reverse(self.prefix + page, current_app=self.current_app)
        return f"{address}?{words}" if words else address

    def context(self, request: HttpRequest) -> dict[str, Any]:
        """Return what the template that the pages extend needs."""
        if self.admin_site is None:
            return {}
        from ..models import Dashboard

        return {**self.admin_site.each_context(request), "opts": Dashboard._meta}
