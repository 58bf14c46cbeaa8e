"""The pages of celery-streams: ``path("queues/", include("django_integration.urls"))``.

``status/`` and ``metrics/`` are for programs, ``tasks/ID/`` for a project's own pages; all else is the dashboard, for
people. It is also in the admin.
"""

from __future__ import annotations

from django.urls import path

from . import views
from .dashboard.pages import urls
from .dashboard.place import Place

app_name = "celery_streams"

urlpatterns = [
    path("status/", views.status, name="status"),
    path("metrics/", views.metrics, name="metrics"),
    path("tasks/<str:task_id>/", views.task, name="task"),
    *urls(Place.outside),
]
