"""StreamsConf: every setting from every source, and an error that helps for each that is wrong."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields
from typing import Any

import pytest
from celery import Celery

from celery_streams.conf import SETTINGS, Alerts, QueueChoice, StreamsConf, is_enabled
from celery_streams.exceptions import ConfigurationError


def read(conf: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> StreamsConf:
    return StreamsConf.from_app_conf(conf or {}, environ=environ or {})


def yes() -> bool:
    return True


def no() -> bool:
    return False


not_callable = 3

#: setting, value in app.conf, the same in the environment, what StreamsConf has
VALUES: list[tuple[str, Any, str, Any]] = [
    ("url", "redis://other/1", "redis://other/1", "redis://other/1"),
    ("queues", ["a", "b*"], "a, b*", QueueChoice(("a", "b*"))),
    ("key_prefix", "mine", "mine", "mine"),
    ("visibility_timeout", 30, "30", 30.0),
    ("acks_late", False, "no", False),
    ("delivery_limit", 7, "7", 7),
    ("dead_letter_failures", False, "0", False),
    ("dead_letter_max_length", 5, "5", 5),
    ("dead_letter_max_memory", 1_000_000, "1000000", 1_000_000),
    ("dead_letter_ttl", dt.timedelta(hours=1), "3600", 3600.0),
    ("max_connection_age", 600, "600", 600.0),
    ("max_length", 100, "100", 100),
    ("publish_on_commit", ["default", "other"], "default, other", ("default", "other")),
    ("unknown_task_ttl", 0, "0", 0.0),
    ("rate_limit_scope", "global", "global", "global"),
    ("compact_messages", False, "no", False),
    ("celery_queue_length", True, "yes", True),
    ("count_tasks", True, "yes", True),
    ("track", ["chat.*", "b"], "chat.*, b", ("chat.*", "b")),
    ("track_ttl", 60, "60", 60.0),
    ("limits", {"t": {"rate": "1/s"}}, '{"t": {"rate": "1/s"}}', {"t": {"rate": "1/s"}}),
    ("partitions", {"q": 8}, '{"q": 8}', {"q": 8}),
    ("alerts", {"dead_warning": 9}, '{"dead_warning": 9}', Alerts(dead_warning=9)),
]

DEFAULTS: dict[str, Any] = {
    "url": None,
    "queues": QueueChoice(("*",)),
    "key_prefix": "celery-streams",
    "visibility_timeout": 15.0,
    "acks_late": True,
    "delivery_limit": 5,
    "dead_letter_failures": True,
    "dead_letter_max_length": 10_000,
    "dead_letter_max_memory": 268_435_456,
    "dead_letter_ttl": 30 * 86_400.0,
    "max_connection_age": None,
    "max_length": None,
    "publish_on_commit": False,
    "unknown_task_ttl": 600.0,
    "rate_limit_scope": "worker",
    "compact_messages": True,
    "celery_queue_length": False,
    "count_tasks": False,
    "track": False,
    "track_ttl": None,
    "limits": {},
    "partitions": {},
    "alerts": Alerts(),
    "priority_steps": (0, 3, 6, 9),
}


def test_defaults_are_the_documented_ones() -> None:
    conf = read()

    assert {item.name: getattr(conf, item.name) for item in fields(conf)} == DEFAULTS


def test_this_table_covers_every_setting() -> None:
    assert {"streams_enabled", *("streams_" + row[0] for row in VALUES)} == set(SETTINGS)


@pytest.mark.parametrize(("name", "value", "text", "expected"), VALUES, ids=[row[0] for row in VALUES])
def test_setting_is_read_from_the_configuration(name: str, value: Any, text: str, expected: Any) -> None:
    assert getattr(read({f"streams_{name}": value}), name) == expected


@pytest.mark.parametrize(("name", "value", "text", "expected"), VALUES, ids=[row[0] for row in VALUES])
def test_environment_overrides_the_configuration(name: str, value: Any, text: str, expected: Any) -> None:
    environ = {f"CELERY_STREAMS_{name.upper()}": text}

    assert getattr(read({f"streams_{name}": DEFAULTS[name]}, environ), name) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("url", "dead_letter_max_length", "dead_letter_max_memory", "dead_letter_ttl"),
        *("max_connection_age", "max_length", "track_ttl"),
    ],
)
def test_none_switches_an_optional_setting_off(name: str) -> None:
    assert getattr(read({f"streams_{name}": None}), name) is None
    assert getattr(read({}, {f"CELERY_STREAMS_{name.upper()}": ""}), name) is None


def test_settings_of_an_app_are_read() -> None:
    app = Celery("conf", set_as_current=False)
    app.conf.update(streams_delivery_limit=3, streams_max_length=9)

    conf = StreamsConf.from_app_conf(app.conf, environ={})

    assert (conf.delivery_limit, conf.max_length) == (3, 9)


def test_namespaced_settings_of_an_object_are_read() -> None:
    class Settings:
        CELERY_STREAMS_DELIVERY_LIMIT = 3
        CELERY_STREAMS_ENABLED = True
        CELERY_STREAMS_QUEUES = ("a",)

    app = Celery("conf", set_as_current=False)
    app.config_from_object(Settings, namespace="CELERY")

    conf = StreamsConf.from_app_conf(app.conf, environ={})

    assert conf.delivery_limit == 3
    assert conf.queues == QueueChoice(("a",))
    assert is_enabled(app.conf, environ={})


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("url", 3, "must be a string"),
        ("queues", 3, "must be a name, a list"),
        ("queues", None, "must be a name, a list"),
        ("queues", ["a", 3], "must hold queue names"),
        ("queues", [""], "must hold queue names"),
        ("queues", "{not json", "not valid JSON"),
        ("queues", {"a": 1.5}, "between 0.0 and 1.0"),
        ("queues", {"a": -0.1}, "between 0.0 and 1.0"),
        ("queues", {"a": float("nan")}, "between 0.0 and 1.0"),
        ("queues", {"a": "half"}, "must be a number"),
        ("key_prefix", "", "without braces"),
        ("key_prefix", None, "without braces"),
        ("key_prefix", "a{b", "without braces"),
        ("visibility_timeout", 0.5, "at least 1"),
        ("visibility_timeout", "soon", "must be a number"),
        ("visibility_timeout", None, "must be a number"),
        ("visibility_timeout", float("nan"), "must be a finite number"),
        ("visibility_timeout", float("inf"), "must be a finite number"),
        ("acks_late", "maybe", "True or False"),
        ("acks_late", None, "True or False"),
        ("delivery_limit", 0, "at least 1"),
        ("delivery_limit", None, "must be a number"),
        ("delivery_limit", float("inf"), "must be a number"),
        ("delivery_limit", "many", "must be a number"),
        ("dead_letter_failures", [], "True or False"),
        ("dead_letter_max_length", 0, "at least 1"),
        ("dead_letter_max_memory", 0, "at least 1"),
        ("dead_letter_ttl", -1, "at least 0"),
        ("max_connection_age", 0, "at least 1"),
        ("max_length", -5, "at least 1"),
        ("unknown_task_ttl", -1, "at least 0"),
        ("rate_limit_scope", "node", "'worker' or 'global'"),
        ("track", {"a": 1}, "names of tasks or patterns"),
        ("track", [1], "names of tasks or patterns"),
        ("track_ttl", -1, "at least 0"),
        ("alerts", "{", "not valid JSON"),
        ("alerts", 3, "mapping of threshold"),
        ("alerts", {"backlog_warn": 3}, "did you mean 'backlog_warning'"),
        ("alerts", {"backlog_warning": "many"}, "must be a number"),
    ],
)
def test_wrong_value_names_the_setting_and_what_it_takes(name: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        read({f"streams_{name}": value})

    assert f"streams_{name}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("conf", "environ", "suggestion"),
    [
        ({"streams_queue": "a"}, {}, "did you mean 'streams_queues'"),
        ({"streams_visibilty_timeout": 3}, {}, "did you mean 'streams_visibility_timeout'"),
        ({}, {"CELERY_STREAMS_ENABLE": "1"}, "did you mean 'CELERY_STREAMS_ENABLED'"),
        ({"CELERY_STREAMS_MAXLENGTH": 3}, {}, "did you mean 'CELERY_STREAMS_MAX_LENGTH'"),
    ],
)
def test_unknown_setting_suggests_the_nearest_name(
    conf: dict[str, Any], environ: dict[str, str], suggestion: str
) -> None:
    with pytest.raises(ConfigurationError, match=suggestion):
        read(conf, environ)


def test_unknown_setting_like_no_other_is_refused_without_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown setting 'streams_qqqqqqqqqqqqqqqqqqqqqqqq'$"):
        read({"streams_qqqqqqqqqqqqqqqqqqqqqqqq": 1})


def test_settings_of_others_are_not_our_business() -> None:
    assert read({"STREAMS_OF_MY_OWN": 1, "broker_url": "redis://", "stream_x": 1}, {"STREAMS_X": "1"}) == StreamsConf()


def test_priority_steps_and_global_prefix_are_those_of_the_transport() -> None:
    conf = read(
        {
            "broker_transport_options": {"priority_steps": [5, 0], "global_keyprefix": "tenant-"},
            "streams_key_prefix": "mine",
        }
    )

    assert conf.priority_steps == (0, 5)
    assert conf.key_prefix == "tenant-mine"
    assert conf.queue_keys("q").streams == ("tenant-mine:{q}", "tenant-mine:{q}:5")


# -- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shares"),
    [
        ("*", {"any": 1.0, "other": 1.0}),
        ("any", {"any": 1.0, "other": 0.0}),
        ("any,oth*", {"any": 1.0, "other": 1.0, "third": 0.0}),
        ([], {"any": 0.0}),
        (("a?y",), {"any": 1.0, "ay": 0.0}),
        ({"any": 0.25, "*": 0.5}, {"any": 0.25, "other": 0.5}),
        ({"*": 0.5, "any": 0}, {"any": 0.0, "other": 0.5}),
        ('{"any": 0.25}', {"any": 0.25, "other": 0.0}),
        ({"any": "1"}, {"any": 1.0}),
    ],
)
def test_choice_of_queues_gives_each_its_share(value: Any, shares: dict[str, float]) -> None:
    choice = QueueChoice.parse(value)

    assert {queue: choice.share(queue) for queue in shares} == shares
    assert {queue: choice.matches(queue) for queue in shares} == {queue: share > 0 for queue, share in shares.items()}


def test_json_list_is_a_list_and_a_pattern_in_brackets_stays_one() -> None:
    assert QueueChoice.parse(' ["send_message", "mark_as_read"] ').names == ("send_message", "mark_as_read")
    assert QueueChoice.parse("[]").patterns == ()
    assert QueueChoice.parse("[ab]*,mail").patterns == ("[ab]*", "mail")
    assert QueueChoice.parse("[1]").matches("1")


def test_queue_name_with_pattern_characters_matches_itself() -> None:
    assert QueueChoice.parse(["odd[1]"]).matches("odd[1]")


def test_patterns_do_not_ignore_case() -> None:
    assert not QueueChoice.parse("Mail*").matches("mail")


@pytest.mark.parametrize(
    ("share", "chance", "drawn"), [(1.0, 0.999, True), (0.0, 0.0, False), (0.5, 0.49, True), (0.5, 0.5, False)]
)
def test_draw_follows_the_share(share: float, chance: float, drawn: bool) -> None:
    assert QueueChoice.parse({"a": share}).draw("a", chance=lambda: chance) is drawn


# -- the switch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        (None, False),
        (1, True),
        (0, False),
        ("true", True),
        ("Yes", True),
        (" on ", True),
        ("1", True),
        ("false", False),
        ("No", False),
        ("OFF", False),
        ("0", False),
        ("", False),
        (yes, True),
        (no, False),
        (f"{__name__}.yes", True),
        (f"{__name__}:no", False),
    ],
)
def test_switch_takes_every_form(value: Any, expected: bool) -> None:
    assert is_enabled({"streams_enabled": value}, environ={}) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("1", True), ("off", False), ("", False), (f"{__name__}.yes", True), (f"{__name__}:no", False)],
)
def test_environment_takes_every_form_of_the_switch_that_is_text(text: str, expected: bool) -> None:
    assert is_enabled({"streams_enabled": not expected}, environ={"CELERY_STREAMS_ENABLED": text}) is expected


def test_switch_is_off_by_default() -> None:
    assert is_enabled({}, environ={}) is False


def test_environment_overrides_the_switch() -> None:
    assert is_enabled({"streams_enabled": True}, environ={"CELERY_STREAMS_ENABLED": "False"}) is False
    assert is_enabled({"streams_enabled": False}, environ={"CELERY_STREAMS_ENABLED": "true"}) is True


@pytest.mark.parametrize(
    "value", ["maybe", [], 1.5, "no.such.module", f"{__name__}.absent", f"{__name__}.not_callable"]
)
def test_switch_in_no_form_is_one_clear_line(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="streams_enabled") as caught:
        is_enabled({"streams_enabled": value}, environ={})

    assert "\n" not in str(caught.value)
