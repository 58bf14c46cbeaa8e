"""The status pages: ``path("queues/", include("django_integration.urls"))``."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "celery_streams"

urlpatterns = [
    path("status/", views.status, name="status"),
    path("metrics/", views.metrics, name="metrics"),
]
