import os

# Celery's documentation imports the app here; some projects leave that to their views.
if not os.environ.get("CHAT_IMPORTS_CELERY_LATER"):
    from .celery import app as celery_app

    __all__ = ("celery_app",)
