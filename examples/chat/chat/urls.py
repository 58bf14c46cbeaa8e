"""The addresses of the chat."""

from __future__ import annotations

from django.conf import settings
from django.urls import path, re_path
from django.views.static import serve

from . import views

app_name = "chat"

urlpatterns = [
    path("", views.home, name="home"),
    path("people/", views.become, name="become"),
    path("c/<int:pk>/", views.conversation, name="conversation"),
    path("c/<int:pk>/news/", views.news, name="news"),
    path("c/<int:pk>/send/", views.send, name="send"),
    path("c/<int:pk>/read/", views.read, name="read"),
    path("c/<int:pk>/fetch/", views.fetch, name="fetch"),
    path("messages/<int:pk>/again/", views.again, name="again"),
    path("api/", views.switch, name="switch"),
    path("kill/", views.kill, name="kill"),
    re_path(r"^media/(?P<path>.*)$", serve, {"document_root": settings.MEDIA_ROOT}),
]
