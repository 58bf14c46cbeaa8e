"""The addresses: the chat, the fake API, the dashboard with the states of tasks, and the admin."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("chat.urls")),
    path("evolution/", include("chat.evolution.urls")),
    path("queues/", include("django_integration.urls")),
    path("admin/", admin.site.urls),
]
