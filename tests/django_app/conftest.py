"""Fixtures for tests that have the sample Django project in their own process."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator

import pytest
from celery import Celery, _state
from django.conf import settings
from django.utils import translation

from celery_streams.embedded import EmbeddedRedis
from tests.support.django_site import PROJECT


@pytest.fixture(autouse=True)
def _language_of_the_settings() -> Iterator[None]:
    """Forget the language of a test's last request, which Django leaves in the thread."""
    yield
    if settings.configured:
        translation.deactivate()


@pytest.fixture(scope="session")
def chatsite(redis_server: EmbeddedRedis) -> Iterator[Celery]:
    """Django, set up once with the sample project; it and the Celery apps of other tests do not notice each other."""
    before = _state.default_app, _state._tls.current_app, set(Celery.builtin_fixups), set(_state._on_app_finalizers)
    os.environ["CHAT_REDIS"] = redis_server.url
    os.environ["DJANGO_SETTINGS_MODULE"] = "chatsite.settings"
    sys.path.insert(0, str(PROJECT))
    # Tasks of other tests' apps are shared with every app that is finalized later.
    _state._on_app_finalizers = {one for one in before[3] if one.__module__ == "celery.app.builtins"}

    import django
    from django.core.management import call_command
    from django.db import connections

    try:
        django.setup()
        from chatsite.celery import app

        importlib.import_module("chat.tasks")
        app.finalize()
        call_command("migrate", run_syncdb=True, verbosity=0)
    finally:
        _state.default_app, _state._tls.current_app, fixups, _state._on_app_finalizers = before
        Celery.builtin_fixups.intersection_update(fixups)
        del os.environ["DJANGO_SETTINGS_MODULE"]
    yield app
    connections.close_all()


@pytest.fixture
def site(chatsite: Celery, redis_url: str) -> Iterator[Celery]:
    """The sample project's Celery app as the current one, on an empty Redis."""
    from django.db import connections

    from celery_streams import streams_of

    before = _state._tls.current_app
    chatsite.set_current()
    streams_of(chatsite).reload()
    yield chatsite
    streams_of(chatsite).reload()
    _state._tls.current_app = before
    for name in ("chat_message", "django_admin_log", "auth_user_user_permissions", "auth_user", "django_session"):
        with connections["default"].cursor() as cursor:
            cursor.execute(f"DELETE FROM {name}")
