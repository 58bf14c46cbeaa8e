"""installation: install an app of Celery's tests on streams if the environment says so.

``SUITE_INSTALL`` is "module:function", called as ``function(app, queues=[...])``; ``SUITE_QUEUES`` are the queues.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__all__ = ("maybe_install",)


def maybe_install(app: Any) -> Any:
    """Install ``app`` and return it."""
    spec = os.environ.get("SUITE_INSTALL")
    if spec:
        module, _, name = spec.partition(":")
        queues = os.environ.get("SUITE_QUEUES", "celery").split(",")
        getattr(import_module(module), name)(app, queues=queues)
    return app
