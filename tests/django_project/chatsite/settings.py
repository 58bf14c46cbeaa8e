import json
import os

SECRET_KEY = "only-for-tests"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "chatsite.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.admin",
    "chat",
    "django_integration",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
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
STATIC_URL = "/static/"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("CHAT_DATABASE", ":memory:"),
        "OPTIONS": {"timeout": 20},
    },
    "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}

CELERY_BROKER_URL = os.environ.get("CHAT_REDIS", "redis://127.0.0.1:6379/0")
CELERY_RESULT_BACKEND = os.environ.get("CHAT_RESULTS")
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ROUTES = {
    "chat.tasks.send_message": {"queue": "send_message"},
    "chat.tasks.look_at_connection": {"queue": "send_message"},
    "chat.tasks.mark_as_read": {"queue": "mark_as_read"},
    "chat.tasks.fetch_profile_pic": {"queue": "fetch_profile_pic"},
}
# None: Celery closes database connections around each task.
CELERY_DB_REUSE_MAX = json.loads(os.environ.get("CHAT_DB_REUSE_MAX", "null"))
CELERY_STREAMS_ENABLED = True
CELERY_STREAMS_QUEUES = ["send_message", "mark_as_read"]
