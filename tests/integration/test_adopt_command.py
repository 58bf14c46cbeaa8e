"""``celery-streams adopt``: what home-made streams hold becomes messages, each once; what has run or is odd stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams.bin.adopt import adopt
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import decode_arguments
from celery_streams.foreign_streams import ForeignEntry, ForeignStream
from celery_streams.message import Message
from tests.support.redis_state import message, redis_state

OLD = "chat:send"


@pytest.fixture
def project(app: Callable[..., Celery]) -> Celery:
    made = app(task_routes={"chat.send": {"queue": "send_message"}})

    @made.task(name="chat.send", time_limit=7)
    def send(chat_id: str, text: str) -> None: ...

    return made


def run(project: Celery, *words: str) -> Result:
    context = CLIContext(app=project, no_color=True, workdir=None)
    return CliRunner().invoke(adopt, [OLD, "--task", "chat.send", *words], obj=context)


MAPS = ("--map", "chat=chat_id", "--map", "body=text")


def write(client: RedisClient, number: int, **fields: Any) -> str:
    flat = [part for pair in (fields or {"chat": number, "body": f"text {number}"}).items() for part in pair]
    return str(client.call("XADD", OLD, f"{number}-0", *flat).decode())


def read(client: RedisClient, *, group: str = "old", consumer: str = "w1", count: int = 1) -> None:
    client.call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", OLD, ">")


def called(broker: StreamBroker, queue: str = "send_message") -> list[Any]:
    """Return what the messages of a queue would call their task with, in their order."""
    found = []
    for _, flat in broker.client.call("XRANGE", broker.queue_keys(queue).streams[0], "-", "+"):
        found.append(decode_arguments(Message.from_fields(flat), accept=None).kwargs)
    return found


def left(client: RedisClient) -> list[str]:
    return [entry_id.decode() for entry_id, _ in client.call("XRANGE", OLD, "-", "+")]


@pytest.mark.parametrize("database", [None, 5])
def test_what_has_not_run_becomes_messages_in_its_order_and_what_has_run_stays(
    project: Celery, broker: StreamBroker, redis_url: str, database: int | None
) -> None:
    client = broker.client if database is None else RedisClient(redis_url.rpartition("/")[0] + f"/{database}")
    for number in range(1, 6):
        write(client, number)
    client.call("XGROUP", "CREATE", OLD, "old", "0")
    read(client, count=3)  # 1, 2 and 3
    client.call("XACK", OLD, "old", "2-0")  # has run
    words = (*MAPS, *(() if database is None else ("--db", str(database))))

    dry = run(project, *words, "--dry-run")
    assert called(broker) == []
    result = run(project, *words)
    again = run(project, *words)

    assert dry.output == (
        "Would adopt 4 entries of chat:send for queue send_message (2 of them held by old consumers).\n"
    )
    assert (result.exit_code, result.output) == (0, dry.output.replace("Would adopt", "Adopted"))
    assert again.output == "Adopted 0 entries of chat:send for queue send_message.\n"
    assert called(broker) == [{"chat_id": str(number), "text": f"text {number}"} for number in (1, 3, 4, 5)]
    assert left(client) == ["2-0"]
    assert client.call("XPENDING", OLD, "old")[0] == 0
    client.close()


def test_message_is_one_of_the_task_with_its_options(project: Celery, broker: StreamBroker) -> None:
    write(broker.client, 1)

    run(project, *MAPS)

    ((_, flat),) = broker.client.call("XRANGE", broker.queue_keys("send_message").streams[0], "-", "+")
    message = Message.from_fields(flat)
    headers, properties = message.decode_headers(), message.decode_properties()
    assert (headers["task"], headers["timelimit"]) == ("chat.send", [7, None])
    assert properties["correlation_id"] == headers["id"]
    assert properties["delivery_info"]["routing_key"] == "send_message"
    assert (properties["content_type"], properties["content_encoding"]) == ("application/json", "utf-8")


def test_fields_may_hold_json(project: Celery, broker: StreamBroker) -> None:
    write(broker.client, 1, data=json.dumps({"chat_id": 2**70, "text": "é"}))

    assert run(project, "--map", "data=*").exit_code == 0

    assert called(broker) == [{"chat_id": 2**70, "text": "é"}]


def test_field_may_be_json_for_one_argument(project: Celery, broker: StreamBroker) -> None:
    write(broker.client, 1, chat="[1, null]", body='"quoted"')

    run(project, "--map", "chat=chat_id:json", "--map", "body=text:text", "-Q", "elsewhere")

    assert called(broker, "elsewhere") == [{"chat_id": [1, None], "text": '"quoted"'}]


@pytest.mark.parametrize(
    ("fields", "words", "why"),
    [
        ({"other": "1"}, MAPS, "it has no field 'chat'"),
        ({"chat": b"\xff", "body": "x"}, MAPS, "the field 'chat' is not text"),
        ({"data": "{"}, ("--map", "data=*"), "the field 'data' is not JSON"),
        ({"data": "[]"}, ("--map", "data=*"), "the field 'data' is not a JSON object"),
    ],
)
def test_what_cannot_be_understood_is_told_and_stays(
    project: Celery, broker: StreamBroker, fields: dict[str, Any], words: tuple[str, ...], why: str
) -> None:
    write(broker.client, 1, **fields)
    good = {"chat": "1", "body": "x", "data": '{"chat_id": 1, "text": "x"}'}
    write(broker.client, 2, **good)

    result = run(project, *words)
    as_json = run(project, *words, "--json")

    assert result.exit_code == 1
    assert f"1-0 stays: {why}." in result.output
    assert len(called(broker)) == 1
    assert left(broker.client) == ["1-0"]
    assert json.loads(as_json.stdout)["left"] == [{"entry_id": "1-0", "why": why}]


def test_several_groups_are_named(project: Celery, broker: StreamBroker) -> None:
    write(broker.client, 1)
    write(broker.client, 2)
    for group in ("b", "a"):
        broker.client.call("XGROUP", "CREATE", OLD, group, "0")
    read(broker.client, group="a")
    broker.client.call("XACK", OLD, "a", "1-0")

    refused = run(project, *MAPS)
    result = run(project, *MAPS, "--group", "a")

    assert refused.exit_code == 2
    assert "several groups: name one with --group (a, b)" in refused.output
    assert result.exit_code == 0
    assert called(broker) == [{"chat_id": "2", "text": "text 2"}]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((*MAPS, "--group", "x"), "has no group 'x'"),
        ((), "Which field is which argument"),
        (("--map", "chat"), "write FIELD=ARGUMENT"),
        (("--map", "chat=a b"), "cannot be the name of an argument"),
        (("--map", "chat=a:xml"), "write FIELD=ARGUMENT"),
        ((*MAPS, "--task", "chat.sned"), "The project has no task 'chat.sned'; did you mean 'chat.send'?"),
        ((*MAPS, "--map", "other=text"), "names the argument 'text' 2 times"),
        ((*MAPS, "-Q", ""), "-Q has an empty name: is a shell variable not set?"),
        ((*MAPS, "-Q", "send_mesage"), "did you mean 'send_message'?"),
        ((*MAPS, "--db", "7"), "There is no stream 'chat:send' in this database"),
    ],
)
def test_what_is_wrong_is_one_line(project: Celery, broker: StreamBroker, words: tuple[str, ...], text: str) -> None:
    write(broker.client, 1)
    before = redis_state(broker.client)

    result = run(project, *words)

    assert result.exit_code == 2, result.output
    assert text in result.output
    assert "Traceback" not in result.output
    assert redis_state(broker.client) == before


def test_key_of_another_type_and_our_own_streams_are_refused(project: Celery, broker: StreamBroker) -> None:
    broker.client.call("SET", OLD, "x")
    assert "'chat:send' is not a stream" in run(project, *MAPS).output
    broker.client.call("DEL", OLD)

    broker.ensure_groups(["q"])
    context = CLIContext(app=project, no_color=True, workdir=None)
    words = ["celery-streams:{q}", "--task", "chat.send", *MAPS]
    result = CliRunner().invoke(adopt, words, obj=context)

    assert result.exit_code == 2
    assert "is a stream of celery-streams" in result.output


def test_command_that_was_killed_between_the_databases_doubles_nothing(
    project: Celery, broker: StreamBroker, redis_url: str
) -> None:
    """Stored in ours, and not deleted from theirs yet."""
    other = RedisClient(redis_url.rpartition("/")[0] + "/5")
    write(other, 1)
    foreign = ForeignStream(other, OLD)
    (entry,) = foreign.entries()
    foreign.take_over(broker, "send_message", entry, message(1), here=False)
    # The entry comes back: as if the command had been killed before it deleted it.
    lost = ForeignEntry(entry.entry_id, entry.fields)

    stored = foreign.take_over(broker, "send_message", lost, message(1), here=False)

    assert stored is False
    assert broker.client.call("XLEN", broker.queue_keys("send_message").streams[0]) == 1
    assert 0 < broker.client.call("TTL", "celery-streams:{send_message}:migrating:tags") <= 3_600
    other.close()


def test_thousands_are_adopted_with_large_ones_among_them(project: Celery, broker: StreamBroker) -> None:
    for number in range(1, 1_201):
        write(broker.client, number, chat=str(number), body="x" * (300_000 if number % 400 == 0 else 10))
    broker.client.call("XGROUP", "CREATE", OLD, "old", "0")
    read(broker.client, count=650)

    assert run(project, *MAPS).exit_code == 0

    assert [one["chat_id"] for one in called(broker)] == [str(number) for number in range(1, 1_201)]
    assert left(broker.client) == []


def test_task_of_a_module_that_nothing_has_imported_yet_is_known(
    app: Callable[..., Celery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: StreamBroker
) -> None:
    (tmp_path / "tasks_to_adopt.py").write_text(
        "from celery import shared_task\n@shared_task(name='chat.send')\ndef send(chat_id, text): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    project = app(include=["tasks_to_adopt"])
    write(broker.client, 1)

    result = run(project, *MAPS)

    assert result.exit_code == 0, result.output
    assert called(broker, "celery") == [{"chat_id": "1", "text": "text 1"}]
