"""Which Celery apps INSTALLED_APPS puts on streams, in whichever order things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from celery_streams.connection import RedisClient
from tests.support.django_site import PROJECT, answer, environment, manage

#: ``on(app)``: where a message sent by name ends up; nothing else finalizes the app.
PRELUDE = """
import json, os
import celery_streams
from celery import Celery, current_app
from celery_streams.connection import RedisClient

def on(app):
    client = RedisClient(os.environ["CHAT_REDIS"])
    client.call("FLUSHALL")
    app.send_task("chat.tasks.send_message", (1,), queue="send_message")
    kind = client.call("TYPE", "celery-streams:{send_message}")
    return "stream" if kind == b"stream" else "list" if client.call("LLEN", "send_message") else "nowhere"
"""

LATE = {"CHAT_IMPORTS_CELERY_LATER": "1"}

#: Each script ends with ``app`` as the app to look at.
ORDERS = {
    "the package of the settings imports it": ("import django; django.setup(); app = current_app", {}),
    "imported by hand before Django is set up": (
        "from chatsite.celery import app; import django; django.setup()",
        LATE,
    ),
    "imported by hand after Django was set up": (
        "import django; django.setup(); from chatsite.celery import app",
        LATE,
    ),
    "made before and configured after Django was set up": (
        "app = Celery('chatsite'); import django; django.setup(); "
        "app.config_from_object('django.conf:settings', namespace='CELERY')",
        LATE,
    ),
    "configured and used before Django was set up": (
        "from chatsite.celery import app; app.conf.broker_url; app.amqp.router; app.finalize(); "
        "import django; django.setup()",
        LATE,
    ),
    "configured with the settings object": (
        "from django.conf import settings; import django; django.setup(); app = Celery('chatsite'); "
        "app.config_from_object(settings, namespace='CELERY')",
        LATE,
    ),
    "configured with the name of the settings module": (
        "import django; django.setup(); app = Celery('chatsite'); "
        "app.config_from_object('chatsite.settings', namespace='CELERY')",
        LATE,
    ),
    "sets Django up while its module is imported": (
        "import django; app = Celery('chatsite'); "
        "app.config_from_object('django.conf:settings', namespace='CELERY'); django.setup(); app.autodiscover_tasks()",
        LATE,
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_app_of_the_project_is_on_streams(redis_url: str, order: str) -> None:
    script, more = ORDERS[order]

    found = answer(f"{PRELUDE}\n{script}\nprint(json.dumps(on(app)))", env=environment(redis_url, **more))

    assert found == "stream"


@pytest.mark.parametrize("when", ["before", "after"])
def test_app_that_does_not_read_the_settings_is_left_alone(redis_url: str, when: str) -> None:
    make = "other = Celery('other', broker=os.environ['CHAT_REDIS'], set_as_current=False)"
    setup = "import django; django.setup()"
    script = f"{make}\n{setup}" if when == "before" else f"{setup}\n{make}"

    found = answer(
        f"{PRELUDE}\n{script}\nprint(json.dumps([on(other), celery_streams.is_installed(other), on(current_app)]))",
        env=environment(redis_url, CELERY_STREAMS_ENABLED="1"),
    )

    assert found == ["list", False, "stream"]


def test_setting_django_up_connects_to_nothing_and_reads_no_celery_configuration(redis_url: str) -> None:
    script = (
        "import sys, json, socket\n"
        "def refuse(*args): raise AssertionError('connected')\n"
        "socket.socket.connect = refuse\n"
        "import django; django.setup()\n"
        "from chatsite.celery import app\n"
        "print(json.dumps([app.configured, app.finalized, 'celery_streams.worker' in sys.modules]))"
    )

    assert answer(script, env=environment(redis_url)) == [False, False, False]


def test_setting_django_up_without_any_celery_app_makes_none(redis_url: str) -> None:
    script = (
        "import json, django; django.setup(); from celery import _state; print(json.dumps(_state.default_app is None))"
    )

    assert answer(script, env=environment(redis_url, **LATE)) is True


def test_shared_task_of_a_late_app_goes_to_its_stream(redis_url: str, client: RedisClient) -> None:
    script = (
        "import django; django.setup()\n"
        "from chatsite.celery import app\n"
        "from chat.tasks import send_message\n"
        "send_message.delay(7)\n"
        "print('null')"
    )

    answer(script, env=environment(redis_url, **LATE))

    assert client.call("XLEN", "celery-streams:{send_message}") == 1


def test_project_app_is_imported_when_nothing_did(redis_url: str) -> None:
    script = (
        "import json, django; django.setup()\n"
        "from django_integration.project import project_app\n"
        "print(json.dumps(project_app().main))"
    )

    assert answer(script, env=environment(redis_url, **LATE)) == "chatsite"


def test_several_apps_without_a_default_are_not_guessed(redis_url: str) -> None:
    script = (
        "import json, django; django.setup()\n"
        "from celery import Celery, _state\n"
        "apps = [Celery(name, set_as_current=False) for name in 'ab']\n"
        "_state.default_app = None\n"
        "for app in apps: app.config_from_object('django.conf:settings', namespace='CELERY')\n"
        "from django_integration.checks import check_celery_streams\n"
        "print(json.dumps([found.msg for found in check_celery_streams()]))"
    )

    [text] = answer(script, env=environment(redis_url, **LATE))

    assert "('a', 'b')" in text


@pytest.mark.parametrize("program", ["celery", "celery_streams"])
@pytest.mark.parametrize("late", [{}, LATE])
def test_command_that_sets_up_no_django_publishes_to_streams(
    redis_url: str, program: str, late: dict[str, str]
) -> None:
    words = [sys.executable, "-m", program, "-A", "chatsite", "call", "chat.tasks.send_message", "--args=[1]"]

    done = subprocess.run(
        [*words, "--queue=send_message"],
        cwd=PROJECT,
        env=environment(redis_url, **late),
        capture_output=True,
        text=True,
    )

    client = RedisClient(redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert client.call("XLEN", "celery-streams:{send_message}") == 1
    assert client.call("LLEN", "send_message") == 0


def test_check_says_how_scripts_without_django_publish_to_streams(redis_url: str) -> None:
    asked = manage("check", env=environment(redis_url))
    script = (
        "import django; from chatsite.celery import app; import celery_streams; celery_streams.install(app); "
        "django.setup(); from django.core.management import call_command; call_command('check'); print('null')"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=environment(redis_url), capture_output=True, text=True
    )

    assert "celery_streams.I002" in asked.stderr
    assert "celery_streams.I002" not in told.stderr
