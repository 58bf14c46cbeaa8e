"""The sample Django project in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

#: Where ``manage.py`` is.
PROJECT = ROOT / "tests" / "django_project"


def environment(redis_url: str, **more: str) -> dict[str, str]:
    """Return the environment in which the sample Django project runs."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CHAT_", "DJANGO_"))}
    return {
        **plain,
        "CHAT_REDIS": redis_url,
        "DJANGO_SETTINGS_MODULE": "chatsite.settings",
        "C_FORCE_ROOT": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def manage(*words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python manage.py ...`` to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *words], cwd=PROJECT, env=dict(env), capture_output=True, text=True, timeout=60
    )


def answer(script: str, *, env: Mapping[str, str]) -> Any:
    """Run a Python script that prints JSON as its last line, and return that."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=dict(env), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
