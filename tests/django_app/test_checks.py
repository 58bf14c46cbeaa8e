"""Django's system checks of the settings."""

from __future__ import annotations

from functools import partial

import pytest
from celery import Celery
from django.core.checks import CheckMessage
from django.http import HttpRequest
from django.test import override_settings

from celery_streams import streams_of
from tests.support.django_site import answer, environment, manage

SETUP = "import json, django; django.setup(); from django_integration.checks import check_celery_streams as check; "
PRINT = "print(json.dumps([[found.id, found.msg] for found in check() if not found.id.endswith('I002')]))"


def findings() -> list[CheckMessage]:
    from django_integration.checks import check_celery_streams

    # The sample project leaves it to INSTALLED_APPS, which I002 is about: see test_django_install.
    return [found for found in check_celery_streams() if found.id != "celery_streams.I002"]


def test_project_in_order_has_no_findings(site: Celery) -> None:
    assert findings() == []


def test_wrong_value_is_an_error_that_names_the_setting(site: Celery) -> None:
    with override_settings(CELERY_STREAMS_DELIVERY_LIMIT=0):
        [found] = findings()

    assert found.id == "celery_streams.E001"
    assert found.msg == "streams_delivery_limit must be at least 1, got 0."
    assert found.hint == "Correct the setting CELERY_STREAMS_DELIVERY_LIMIT."


def test_wrong_value_of_an_environment_variable_is_an_error_that_names_it(
    site: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_STREAMS_VISIBILITY_TIMEOUT", "soon")

    [found] = findings()

    assert found.id == "celery_streams.E001"
    assert found.hint == "Correct the environment variable CELERY_STREAMS_VISIBILITY_TIMEOUT."


@pytest.mark.parametrize("switch", ["perhaps", "chat.nowhere.switch", object()])
def test_switch_that_says_neither_on_nor_off_is_an_error(site: Celery, switch: object) -> None:
    with override_settings(CELERY_STREAMS_ENABLED=switch):
        [found] = findings()

    assert found.id == "celery_streams.E001"
    assert found.hint == "Correct the setting CELERY_STREAMS_ENABLED."


def test_each_unknown_setting_is_an_error_with_the_nearest_name(site: Celery) -> None:
    with override_settings(CELERY_STREAMS_QUEUS=["a"], CELERY_STREAMS_ENABLD=True):
        found = findings()

    assert [(one.id, one.msg) for one in found] == [
        ("celery_streams.E002", "Unknown setting 'CELERY_STREAMS_ENABLD'; did you mean 'CELERY_STREAMS_ENABLED'?"),
        ("celery_streams.E002", "Unknown setting 'CELERY_STREAMS_QUEUS'; did you mean 'CELERY_STREAMS_QUEUES'?"),
    ]


def test_unknown_environment_variable_is_an_error_that_says_so(site: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_STREAMS_URLL", "redis://localhost")

    [found] = findings()

    assert found.id == "celery_streams.E002"
    assert found.hint == "Correct or remove the environment variable CELERY_STREAMS_URLL."


def test_streams_on_without_a_redis_is_an_error(site: Celery) -> None:
    with override_settings(CELERY_STREAMS_URL="amqp://guest:secret@localhost//"):
        [found] = findings()

    assert found.id == "celery_streams.E003"
    assert "secret" not in found.msg


def test_streams_off_without_a_redis_is_in_order(site: Celery) -> None:
    with override_settings(CELERY_STREAMS_URL="amqp://localhost//", CELERY_STREAMS_ENABLED=False):
        assert findings() == []


@pytest.mark.parametrize("value", ["chat.nowhere.test", "chat.tasks.no_such_function", "chat", 42])
def test_permission_that_is_no_function_is_an_error(site: Celery, value: object) -> None:
    with override_settings(CELERY_STREAMS_STATUS_PERMISSION=value):
        [found] = findings()

    assert found.id == "celery_streams.E004"


async def asynchronous(request: HttpRequest) -> bool:
    return False


class Asynchronous:
    async def __call__(self, request: HttpRequest) -> bool:
        return False


@pytest.mark.parametrize("value", [asynchronous, Asynchronous(), partial(asynchronous), f"{__name__}.asynchronous"])
def test_permission_that_nobody_would_await_is_an_error(site: Celery, value: object) -> None:
    with override_settings(CELERY_STREAMS_STATUS_PERMISSION=value):
        [found] = findings()

    assert found.id == "celery_streams.E004"
    assert "async def" in found.msg


def redis_cache(url: str, **options: object) -> dict[str, object]:
    cache = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url, "OPTIONS": options}
    return {"default": cache}


def test_cache_in_the_database_of_the_streams_is_worth_an_info(site: Celery) -> None:
    server = streams_of(site).url.rpartition("/")[0]

    for url, options in [
        (f"{server}/0", {}),
        (server, {}),
        (server.replace("127.0.0.1", "localhost"), {}),
        (f"{server}?db=0", {}),
    ]:
        with override_settings(CACHES=redis_cache(url, **options)):
            [found] = findings()

        assert found.id == "celery_streams.I001"
        assert "'default'" in found.msg


def test_several_caches_in_the_database_of_the_streams_are_said_once(site: Celery) -> None:
    server = streams_of(site).url.rpartition("/")[0]
    caches = {alias: redis_cache(f"{server}/0")["default"] for alias in ("default", "sessions", "pages")}

    with override_settings(CACHES=caches):
        [found] = findings()

    assert found.id == "celery_streams.I001"
    assert found.msg.startswith("The caches 'default', 'sessions' and 'pages' are in the Redis database")


def test_misspelt_queue_and_variable_are_warnings_with_the_nearest_name(
    site: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_STREAM_URL", "redis://elsewhere/0")

    with override_settings(CELERY_STREAMS_QUEUES=["send_mesage", "mark_as_read"]):
        found = {one.id: one.msg for one in findings()}

    assert found == {
        "celery_streams.W003": (
            "CELERY_STREAM_URL is not a setting and has no effect; did you mean 'CELERY_STREAMS_URL'?"
        ),
        "celery_streams.W004": (
            "streams_queues names 'send_mesage', which no queue, route or task has; did you mean 'send_message'?"
        ),
    }


def test_cache_elsewhere_is_in_order(site: Celery) -> None:
    server = streams_of(site).url.rpartition("/")[0]

    for url, options in [(f"{server}/1", {}), (server, {"db": 3}), ("redis://elsewhere/0", {})]:
        with override_settings(CACHES=redis_cache(url, **options)):
            assert findings() == []


def test_two_sentinels_are_in_order(site: Celery) -> None:
    url = "sentinel://h1:26379;sentinel://h2:26379/0?master_name=chat"

    with override_settings(CELERY_STREAMS_URL=url, CACHES=redis_cache("redis://elsewhere/0")):
        assert findings() == []


def test_project_without_a_celery_app_is_warned(redis_url: str) -> None:
    script = "from django.conf import settings; settings.configure(INSTALLED_APPS=['django_integration']); "

    [[code, _]] = answer(script + SETUP + PRINT, env={**environment(redis_url), "DJANGO_SETTINGS_MODULE": ""})

    assert code == "celery_streams.W001"


@pytest.mark.parametrize("namespace", ["None", "'QUEUE'"])
def test_settings_that_the_app_does_not_read_are_a_warning(redis_url: str, namespace: str) -> None:
    script = (
        "from celery import Celery; app = Celery('other'); "
        f"app.config_from_object('django.conf:settings', namespace={namespace}); "
    )
    env = environment(redis_url, CHAT_IMPORTS_CELERY_LATER="1")

    [[code, message]] = answer(script + SETUP + PRINT, env=env)

    assert code == "celery_streams.W002"
    assert message.endswith("does not read these Django settings: CELERY_STREAMS_ENABLED, CELERY_STREAMS_QUEUES.")


def test_manage_check_reports_the_findings(redis_url: str) -> None:
    done = manage("check", env=environment(redis_url, CELERY_STREAMS_MAX_LENGTH="-5"))

    assert done.returncode == 1
    assert "(celery_streams.E001) streams_max_length must be at least 1, got '-5'." in done.stderr
