"""Admin: "Celery Streams" among the project's models leads to the dashboard."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import URLPattern

from .dashboard.pages import urls
from .dashboard.place import Place
from .models import Dashboard
from .permissions import dashboard_permission

__all__ = ("DashboardAdmin",)


@admin.register(Dashboard)
class DashboardAdmin(admin.ModelAdmin):  # type: ignore[type-arg, unused-ignore]
    """The dashboard in place of the pages that a table would have."""

    def get_urls(self) -> list[URLPattern]:
        """Return the pages; the first takes the place of the change list."""
        site = self.admin_site
        place = Place.in_admin(site)
        pages = list(urls(lambda request: place, prefix="celery_streams_", wrap=site.admin_view))
        # Admin templates and menus link to the change list.
        first = next(iter(urls(lambda request: place, prefix="", wrap=site.admin_view)))
        first.name = "celery_streams_dashboard_changelist"
        return [*pages, first]

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Return whether it stands in the index."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether the user may see the queues."""
        return bool(dashboard_permission(in_admin=True)(request, "view_queues"))

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: there is no table."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: there is no table."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: there is no table."""
        return False
