"""The settings: a usual Django project, Celery with a queue for each task, and what is added for streams."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# -- Django ------------------------------------------------------------------------------------------------------------

#: The database and what people upload; ``start.py`` makes a temporary folder for each start, and removes it.
FOLDER = Path(os.environ.get("CHAT_FOLDER") or Path(tempfile.gettempdir()) / "celery-streams-chat")

SECRET_KEY = os.environ.get("CHAT_SECRET_KEY", "only for commands that are called by hand")
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
USE_TZ = True
TIME_ZONE = "UTC"  # the page's script shows local times
ROOT_URLCONF = "chatbackend.urls"
WSGI_APPLICATION = "chatbackend.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "chat",
    "django_integration",
]
MIDDLEWARE = [
    "chat.middleware.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    # The dashboard and the admin speak the language of the browser; the chat itself is in English.
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# Other projects on this host have cookies of their own: browsers do not tell ports apart.
SESSION_COOKIE_NAME = "chat_session"
CSRF_COOKIE_NAME = "chat_csrf"
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
MEDIA_ROOT = FOLDER / "media"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "db.sqlite3",
        # Seconds for which a writer waits for another one: workers and the web server share the file.
        "OPTIONS": {"timeout": 20},
    }
}

# -- The Evolution API (a fake one, served by this project) ------------------------------------------------------------

ADDRESS = os.environ.get("CHAT_ADDRESS", "http://127.0.0.1:8000")
EVOLUTION_URL = f"{ADDRESS}/evolution"
EVOLUTION_INSTANCE = "chat"
EVOLUTION_KEY = os.environ.get("CHAT_EVOLUTION_KEY", "of the fake API")

# -- Celery ------------------------------------------------------------------------------------------------------------

REDIS = os.environ.get("CHAT_REDIS", "redis://127.0.0.1:6379")
CELERY_BROKER_URL = f"{REDIS}/0"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ROUTES = {
    f"chat.tasks.{name}": {"queue": name}
    for name in ("send_message", "mark_as_read", "fetch_profile_pic", "fetch_group_info")
}

# -- Streams -----------------------------------------------------------------------------------------------------------

CELERY_STREAMS_ENABLED = True
CELERY_STREAMS_QUEUES = ["send_message", "mark_as_read"]
CELERY_STREAMS_URL = f"{REDIS}/3"  # database 3 is for streams alone
#: Seconds after which what a killed worker held runs again: the default is 15, and somebody is watching here.
CELERY_STREAMS_VISIBILITY_TIMEOUT = 5
#: A message goes out when the transaction that wrote it commits, so that its task finds it.
CELERY_STREAMS_PUBLISH_ON_COMMIT = True
#: Whose states are kept for the people who sent them, and who may see them.
CELERY_STREAMS_TRACK = ["chat.tasks.send_message", "chat.tasks.mark_as_read"]
CELERY_STREAMS_TASK_PERMISSION = "chat.permissions.may_see_task"
#: What the provider allows. A limit of its own also lets a 429 (``RateLimited``) hold the whole task.
CELERY_STREAMS_LIMITS = {"chat.tasks.send_message": {"rate": "50/s"}, "chat.tasks.mark_as_read": {"rate": "50/s"}}
CELERY_STREAMS_RATE_LIMIT_SCOPE = "global"
