"""The addresses of the fake API."""

from __future__ import annotations

from django.urls import path

from . import fake

urlpatterns = [
    path("message/sendText/<str:instance>", fake.send_text),
    path("chat/markMessageAsRead/<str:instance>", fake.mark_as_read),
    path("chat/fetchProfilePictureUrl/<str:instance>", fake.profile_picture_url),
    path("group/findGroupInfos/<str:instance>", fake.group_info),
    path("pictures/<str:jid>.svg", fake.picture, name="evolution-picture"),
]
