"""``celery-streams dead``: what an operator sees of dead letters, and does to them."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import inspect
from celery_streams.bin.dead import dead
from celery_streams.bin.root import celery_streams
from celery_streams.broker import StreamBroker
from celery_streams.connection import RedisClient
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.message import Message, encode
from celery_streams.pauses import pause_queue, resume_queue
from celery_streams.revocations import revoke
from tests.support.eventually import eventually
from tests.support.processes import project_environment
from tests.support.redis_state import delivered, redis_now_ms, redis_state

ROOT = Path(__file__).resolve().parents[2]

#: A port on which nothing listens.
AWAY = "redis://127.0.0.1:1/0"

MakeApp = Callable[..., Celery]


def run(app: Celery, *words: str, answer: str | None = None) -> Result:
    """Run the command as the root group would; ``answer`` is typed when it asks."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(dead, list(words), obj=context, input=answer)


def output(result: Result) -> Any:
    """Return what was printed as JSON, after checking that all went well."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def one_line(result: Result) -> str:
    """Return the only line of the error, after checking that there is nothing else."""
    assert result.stdout == ""
    assert result.exit_code != 0
    [line] = result.stderr.splitlines()
    return line


def task_message(
    number: int, *, task: str = "chat.send", body: bytes | None = None, content_type: str = "application/json"
) -> Message:
    """Return a message as Celery makes it."""
    headers = {"id": f"task-{number}", "task": task, "lang": "py", "retries": 0, "eta": None}
    encoding = "utf-8" if content_type == "application/json" else "binary"
    properties = {"content_type": content_type, "content_encoding": encoding, "priority": 0}
    return encode(headers, properties, body if body is not None else b'[[%d],{"text":"hello"},{}]' % number)


def bury(
    broker: StreamBroker, number: int, *, queue: str = "q", reason: str = "failed", message: Message | None = None
) -> str:
    """Let a message die as the worker does; returns the id of the dead letter."""
    one = message or task_message(number)
    [held] = delivered(broker, queue, "w", one)
    death = {
        "reason": reason,
        "task": one.decode_headers().get("task"),
        "task_id": f"task-{number}",
        "exception": "ValueError('no')",
        "traceback": "Traceback (most recent call last):\n  ValueError: no",
        "worker": "w@host",
        "crashes": 2,
        "entry_id": held.entry_id.decode(),
        "queue": queue,
    }
    found = broker.reject("w", held.entry, death=json.dumps(death).encode(), max_length=None, ttl=None)
    assert found is not None
    return found.decode()


def bury_at(broker: StreamBroker, seconds_ago: float, number: int, *, queue: str = "q") -> str:
    """Write a dead letter that died so long ago; call it in the order of time."""
    died = int(redis_now_ms(broker.client) - seconds_ago * 1000)
    broker.ensure_groups([queue])
    fields = [*task_message(number).as_fields(), b"death", b'{"reason":"failed","task_id":"task-%d"}' % number]
    key = broker.queue_keys(queue).dead
    return str(broker.client.call("XADD", key, f"{died}-{number}", *fields).decode())


def waiting_ids(broker: StreamBroker, queue: str = "q") -> list[str]:
    """Return the task ids on the stream of ``queue``, in order."""
    key = broker.queue_keys(queue).streams[0]
    return [
        Message.from_fields(fields).decode_headers()["id"] for _, fields in broker.client.call("XRANGE", key, "-", "+")
    ]


def dead_ids(broker: StreamBroker, queue: str = "q") -> list[str | None]:
    return [letter.task_id for letter in dead_letters(broker, queue)]


# -- list -------------------------------------------------------------------------------------------------------------


def test_list_shows_the_dead_letters_of_all_queues(app: MakeApp, broker: StreamBroker) -> None:
    first = bury(broker, 1)
    second = bury(broker, 2, queue="other", reason="crashed")
    before = redis_state(broker.client)

    result = run(app(), "list")

    assert result.exit_code == 0
    [header, _, *rows] = result.stdout.splitlines()
    assert header.split()[:3] == ["queue", "entry", "id"]
    assert [row.split()[:2] for row in rows] == [["other", second], ["q", first]]
    assert "crashed" in rows[0]
    assert "chat.send" in rows[0]
    assert redis_state(broker.client) == before


def test_list_as_json_says_everything_but_the_message(app: MakeApp, broker: StreamBroker) -> None:
    entry_id = bury(broker, 1)

    found = output(run(app(), "list", "--json"))

    [letter] = found["dead_letters"]
    assert found["total"] == 1
    assert letter.pop("died").startswith("20")
    assert letter.pop("published").startswith("20")
    assert letter.pop("died_at") > 1e9
    assert letter == {
        "queue": "q",
        "entry_id": entry_id,
        "reason": "failed",
        "task": "chat.send",
        "task_id": "task-1",
        "exception": "ValueError('no')",
        "worker": "w@host",
        "crashes": 2,
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-Q", "q"], ["task-1", "task-2", "task-3"]),
        (["--queues", "other"], ["task-4"]),
        (["-Q", "other, q"], ["task-4", "task-1", "task-2", "task-3"]),
        (["--task", "chat.read"], ["task-3"]),
        (["--task", "chat.*"], ["task-4", "task-1", "task-2", "task-3"]),
        (["--task", "chat"], []),
        (["--reason", "crashed"], ["task-2"]),
        (["--id", "task-2", "--id", "task-4"], ["task-4", "task-2"]),
        (["--task", "chat.send", "--reason", "failed", "-Q", "q"], ["task-1"]),
    ],
)
def test_filters_choose_what_is_listed(
    app: MakeApp, broker: StreamBroker, words: list[str], expected: list[str]
) -> None:
    bury(broker, 1)
    bury(broker, 2, reason="crashed")
    bury(broker, 3, message=task_message(3, task="chat.read"))
    bury(broker, 4, queue="other")

    found = output(run(app(), "list", "--json", *words))

    assert [letter["task_id"] for letter in found["dead_letters"]] == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--older-than", "1h"], ["task-1", "task-2"]),
        (["--older-than", "3d"], ["task-1"]),
        (["--newer-than", "10m"], ["task-4"]),
        (["--newer-than", "5400"], ["task-3", "task-4"]),
        (["--older-than", "30m", "--newer-than", "100000s"], ["task-2", "task-3"]),
    ],
)
def test_age_filters_take_seconds_minutes_hours_and_days(
    app: MakeApp, broker: StreamBroker, words: list[str], expected: list[str]
) -> None:
    for number, ago in ((1, 4 * 86_400), (2, 7_200), (3, 3_500), (4, 60)):
        bury_at(broker, ago, number)

    found = output(run(app(), "list", "--json", *words))

    assert [letter["task_id"] for letter in found["dead_letters"]] == expected


def test_letter_is_found_by_its_entry_id_too(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)
    entry_id = bury(broker, 2)

    found = output(run(app(), "list", "--json", "--id", entry_id))

    assert [letter["task_id"] for letter in found["dead_letters"]] == ["task-2"]


def test_limit_shows_the_newest_and_says_how_many_there_are(app: MakeApp, broker: StreamBroker) -> None:
    for number in range(5):
        bury(broker, number)

    table = run(app(), "list", "--limit", "2").stdout
    found = output(run(app(), "list", "--limit", "2", "--json"))

    assert "task-2" not in table
    assert table.index("task-3") < table.index("task-4")
    assert "Showing the newest 2 of 5; use --limit for more." in table
    assert found["total"] == 5
    assert [letter["task_id"] for letter in found["dead_letters"]] == ["task-3", "task-4"]


def test_list_of_nothing_says_so(app: MakeApp, redis_url: str) -> None:
    assert run(app(), "list").stdout == "No dead letters.\n"


# -- show -------------------------------------------------------------------------------------------------------------


def test_show_prints_the_whole_message_and_its_history(app: MakeApp, broker: StreamBroker) -> None:
    entry_id = bury(broker, 7)
    before = redis_state(broker.client)

    text = run(app(), "show", "q", entry_id).stdout

    for line in (
        f"entry id: {entry_id}",
        "reason: failed",
        "task: chat.send",
        "task id: task-7",
        "exception: ValueError('no')",
        "worker: w@host",
        "crashes: 2",
        "traceback:\n  Traceback (most recent call last):",
        "args: [7]",
        "kwargs:\n  text: hello",
        "  content_type: application/json",
    ):
        assert line in text
    assert redis_state(broker.client) == before


def test_show_finds_a_letter_by_its_task_id(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 6)
    entry_id = bury(broker, 7)

    found = output(run(app(), "show", "q", "task-7", "--json"))

    assert found["entry_id"] == entry_id
    assert (found["args"], found["kwargs"]) == ([7], {"text": "hello"})
    assert found["headers"]["id"] == "task-7"


def test_show_tells_each_attempt(app: MakeApp, broker: StreamBroker) -> None:
    lines = "1\t1700000000000\t1700000090000\tretried\tw@host/1.aa\t\x1b[2JOdd\n2\t\t1700000100000\tlost\tw@host/2.bb\t"
    history = json.dumps({"first": "1-1", "redelivered": 1, "attempts": lines}).encode()
    entry_id = bury(broker, 7, message=task_message(7).changed(history=history))

    text = run(app(), "show", "q", entry_id).stdout
    found = output(run(app(), "show", "q", entry_id, "--json"))

    assert (
        "attempts:\n"
        "  1. 2023-11-14T22:14:50.000+00:00 retried after 1m 30s on w@host/1.aa: \\x1b[2JOdd\n"
        "  2. 2023-11-14T22:15:00.000+00:00 lost on w@host/2.bb\n"
    ) in text
    assert "history:\n  first: 1-1\n  redelivered: 1\n" in text
    assert found["history"] == {"first": "1-1", "redelivered": 1}
    assert found["attempts"] == [
        {
            "number": 1, "began": "2023-11-14T22:13:20.000+00:00", "ended": "2023-11-14T22:14:50.000+00:00",
            "outcome": "retried", "worker": "w@host/1.aa", "detail": "\x1b[2JOdd",
        },
        {
            "number": 2, "began": None, "ended": "2023-11-14T22:15:00.000+00:00", "outcome": "lost",
            "worker": "w@host/2.bb", "detail": "",
        },
    ]  # fmt: skip


class Trap:
    """Unpickling this leaves a trace."""

    sprung: list[int] = []  # noqa: RUF012

    def __reduce__(self) -> Any:
        return (Trap.sprung.append, (1,))


def test_pickle_that_is_not_accepted_is_never_loaded(app: MakeApp, broker: StreamBroker) -> None:
    Trap.sprung.clear()
    body = pickle.dumps(([Trap()], {}, {}))
    entry_id = bury(broker, 1, message=task_message(1, body=body, content_type="application/x-python-serialize"))

    found = output(run(app(), "show", "q", entry_id, "--json"))

    assert Trap.sprung == []
    assert "ContentDisallowed" in found["body_not_decoded"]
    assert found["fields"]["body"].startswith("base64:")
    assert "args" not in found


@pytest.mark.parametrize("body", [b'"abc"', b'{"a": 1, "b": 2, "c": 3}', b"7", b"null", b"[]"])
def test_body_that_is_no_list_of_arguments_is_said_to_be_none(app: MakeApp, broker: StreamBroker, body: bytes) -> None:
    entry_id = bury(broker, 1, message=task_message(1, body=body))

    found = output(run(app(), "show", "q", entry_id, "--json"))

    assert found["body_not_decoded"]
    assert "args" not in found
    assert found["fields"]["body"] == body.decode()


def test_pickle_that_the_project_accepts_is_decoded(app: MakeApp, broker: StreamBroker) -> None:
    body = pickle.dumps(((1, {2}), {}, {}))
    entry_id = bury(broker, 1, message=task_message(1, body=body, content_type="application/x-python-serialize"))

    text = run(app(accept_content=["json", "pickle"]), "show", "q", entry_id).stdout

    assert "args: (1, {2})" in text


def test_show_of_a_malformed_letter_prints_its_raw_fields(app: MakeApp, broker: StreamBroker) -> None:
    broker.ensure_groups(["q"])
    fields = ["junk", b"\xff\x00", "color", b"\x1b[31mred", "death", '{"reason":"malformed"}']
    entry_id = broker.client.call("XADD", broker.queue_keys("q").dead, "*", *fields).decode()

    text = run(app(), "show", "q", entry_id).stdout

    assert "reason: malformed" in text
    assert "  junk: base64:/wA=" in text
    assert "\x1b" not in text


def test_show_of_what_is_not_there_is_one_line(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)

    line = one_line(run(app(), "show", "q", "1-1"))

    assert line == "Error: Queue 'q' has no dead letter '1-1'"


# -- replay -----------------------------------------------------------------------------------------------------------


def test_replayed_letters_run_again_with_their_task_ids(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)
    bury(broker, 2, reason="crashed")

    result = run(app(), "replay", "--reason", "failed")

    assert result.stdout == "Replayed 1 of 1 dead letter.\n"
    assert waiting_ids(broker) == ["task-1"]
    assert dead_ids(broker) == ["task-2"]
    [again] = broker.read(broker.streams(["q"]), "w", count=5)
    assert again.message == task_message(1)


def test_replay_run_twice_replays_once(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)
    run(app(), "replay", "--all")
    before = redis_state(broker.client)

    again = run(app(), "replay", "--all")

    assert again.stdout == "Replayed 0 of 0 dead letters.\n"
    assert redis_state(broker.client) == before


def test_replay_can_go_to_another_queue(app: MakeApp, broker: StreamBroker) -> None:
    entry_id = bury(broker, 1)

    found = output(run(app(), "replay", "--id", "task-1", "--to", "slow", "--json"))

    [moved] = found["replayed"]
    assert (moved["queue"], moved["entry_id"], moved["task_id"], moved["to"]) == ("q", entry_id, "task-1", "slow")
    assert waiting_ids(broker, "slow") == ["task-1"]
    assert waiting_ids(broker) == dead_ids(broker) == []
    assert inspect.known_queues(broker) == ["q", "slow"]


def test_dry_run_counts_and_changes_nothing(app: MakeApp, broker: StreamBroker) -> None:
    for number in range(3):
        bury(broker, number)
    bury(broker, 9, reason="crashed")
    before = redis_state(broker.client)

    text = run(app(), "replay", "--all", "--dry-run").stdout
    found = output(run(app(), "purge", "--all", "--dry-run", "--json"))

    assert text == "Would replay 4 dead letters.\n  q: 1 crashed\n  q: 3 failed\n"
    assert found["matched"] == 4
    assert redis_state(broker.client) == before


def test_letter_that_dies_again_while_replaying_waits_for_the_next_time(broker: StreamBroker) -> None:
    for number in range(150):
        bury(broker, number)

    replayed = 0
    for letter in dead_letters(broker, "q"):
        replay(broker, letter)
        bury(broker, 1_000 + replayed)
        replayed += 1

    assert replayed == 150


def test_letter_that_is_no_message_is_refused_and_the_others_are_replayed(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)
    broker.client.call("XADD", broker.queue_keys("q").dead, "*", "junk", "1", "death", "{}")
    bury(broker, 2)

    result = run(app(), "replay", "--all")

    assert result.exit_code == 1
    assert result.stdout == "Replayed 2 of 3 dead letters.\n"
    assert "is not a task message" in result.stderr
    assert waiting_ids(broker) == ["task-1", "task-2"]
    assert len(dead_ids(broker)) == 1


def test_replay_that_is_killed_half_way_and_run_again_replays_each_once(
    app: MakeApp, broker: StreamBroker, redis_url: str, tmp_path: Path
) -> None:
    # F34
    count = 2_000
    broker.ensure_groups(["q"])
    key = broker.queue_keys("q").dead
    broker.client.pipeline(
        [("XADD", key, f"1-{n + 1}", *task_message(n).as_fields(), "death", "{}") for n in range(count)]
    )
    (tmp_path / "killed_app.py").write_text(
        textwrap.dedent(
            f"""
            import celery, celery_streams
            app = celery.Celery("killed", broker="{redis_url}")
            celery_streams.install(app, enabled=True)
            """
        )
    )
    command = [sys.executable, "-m", "celery_streams", "-A", "killed_app", "--workdir", str(tmp_path), "dead", "replay"]
    with subprocess.Popen([*command, "--all"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            # The program has to start first, and on a busy machine that takes a while.
            stream = broker.queue_keys("q").streams[0]
            eventually(lambda: broker.client.call("XLEN", stream) > 50, interval=0.001, timeout=60)
        finally:
            process.send_signal(signal.SIGKILL)
    left = len(dead_ids(broker))

    output(run(app(), "replay", "--all", "--json"))

    assert 0 < left < count
    assert sorted(waiting_ids(broker)) == sorted(f"task-{n}" for n in range(count))
    assert dead_ids(broker) == []


class Cut(RedisClient):
    """A client whose connection breaks at the Nth round trip: before Redis saw it, or after Redis did it."""

    def __init__(self, url: str, *, at: int, after: bool) -> None:
        super().__init__(url)
        self.left, self.after = at, after

    def pipeline(self, commands: Any) -> list[Any]:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise ConnectionResetError
        replies = super().pipeline(commands)
        if self.left == 0:
            raise ConnectionResetError
        return replies


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2])
def test_replay_that_is_cut_off_at_any_script_replays_each_once(
    broker: StreamBroker, redis_url: str, at: int, after: bool
) -> None:
    for number in range(2):
        bury(broker, number)
    cut = StreamBroker(Cut(redis_url, at=at, after=after))
    letters = list(dead_letters(broker, "q"))

    with pytest.raises(ConnectionResetError):
        for letter in letters:
            replay(cut, letter)
    for letter in letters:
        replay(broker, letter)

    assert sorted(waiting_ids(broker)) == ["task-0", "task-1"]
    assert dead_ids(broker) == []


@pytest.mark.parametrize("target", ["q", "other"])
def test_replay_into_a_paused_queue_says_that_they_wait(app: MakeApp, broker: StreamBroker, target: str) -> None:
    for number in range(2):
        bury(broker, number)
    broker.ensure_groups(["other"])
    pause_queue(broker, target, reason="deploy")

    result = run(app(), "replay", "--all", *(("--to", "other") if target == "other" else ()))

    assert (result.exit_code, sorted(waiting_ids(broker, target))) == (0, ["task-0", "task-1"])
    assert (
        f"Queue {target} is paused: they wait until it is resumed (celery-streams -A APP resume {target})."
        in result.stdout
    )
    assert broker.read(broker.streams([target]), "w", count=1) == []
    resume_queue(broker, target)
    bury(broker, 3)
    assert "paused" not in run(app(), "replay", "--all").stdout


@pytest.mark.parametrize("revoked", [False, True])
def test_replay_of_a_unique_task_whose_lock_is_taken_recommends_no_option_that_does_not_help(
    app: MakeApp, broker: StreamBroker, revoked: bool
) -> None:
    made = app()
    broker.ensure_groups(["q"])

    @made.task(name="chat.sync", shared=False, streams_unique=True)
    def sync() -> None: ...

    sync.apply_async(queue="q")
    (found,) = broker.read(broker.streams(["q"]), "w", count=1)
    broker.reject("w", found.entry, death=b'{"reason":"failed"}', max_length=None, ttl=None)
    if revoked:
        bury(broker, 1)
        revoke(broker, ["task-1"], seconds=60)
    newer = sync.apply_async(queue="q")

    result = run(made, "replay", "--all")

    assert result.exit_code == 1
    assert f"message {newer.id} holds its lock" in result.stderr
    assert ("--ignore-revoked" in result.stderr) == revoked


# -- purge ------------------------------------------------------------------------------------------------------------


def test_purge_deletes_what_was_chosen_after_a_yes(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)
    bury(broker, 2, reason="crashed")

    result = run(app(), "purge", "--reason", "crashed", answer="y\n")

    assert result.exit_code == 0
    assert "Delete 1 dead letter for good?" in result.stderr
    assert "Deleted 1 of 1 dead letter." in result.stdout
    assert dead_ids(broker) == ["task-1"]


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_purge_without_a_yes_deletes_nothing(app: MakeApp, broker: StreamBroker, answer: str) -> None:
    bury(broker, 1)
    before = redis_state(broker.client)

    result = run(app(), "purge", "--all", answer=answer)

    assert result.exit_code == 1
    assert "Nothing was deleted" in result.stderr
    assert redis_state(broker.client) == before


def test_purge_with_yes_does_not_ask(app: MakeApp, broker: StreamBroker) -> None:
    for number in range(120):
        bury_at(broker, (120 - number) * 60, number)

    found = output(run(app(), "purge", "--older-than", "90", "--yes", "--json"))

    assert found == {"matched": 119, "purged": 119}
    assert dead_ids(broker) == ["task-119"]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["replay", "purge"])
def test_replay_and_purge_of_everything_must_be_said(app: MakeApp, broker: StreamBroker, command: str) -> None:
    bury(broker, 1)
    before = redis_state(broker.client)

    line = one_line(run(app(), command))

    assert line == "Error: Which dead letters? Give a queue or another filter, or --all"
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("command", [("replay",), ("purge", "--yes")], ids=str)
@pytest.mark.parametrize(
    "words",
    [
        ("-Q", ""),
        ("-Q", "", "--newer-than", "1d"),
        ("-Q", "q,", "--reason", "failed"),
        ("--task", ""),
        ("--task", "chat.*", "--id", " "),
    ],
    ids=str,
)
def test_filter_that_an_unset_variable_left_empty_chooses_nothing(
    app: MakeApp, broker: StreamBroker, command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    bury(broker, 1)
    bury(broker, 2, message=task_message(2, task=""))
    before = redis_state(broker.client)

    result = run(app(), *command, *words)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a shell variable not set?" in result.stderr.splitlines()[-1]
    assert redis_state(broker.client) == before


@pytest.mark.parametrize("words", [["list", "-Q"], ["replay", "-Q"], ["purge", "-Q"]])
def test_queue_that_was_never_used_is_one_line_with_a_suggestion(
    app: MakeApp, broker: StreamBroker, words: list[str]
) -> None:
    bury(broker, 1, queue="send_message")

    line = one_line(run(app(), *words, "send_mesage"))

    assert line == "Error: Queue 'send_mesage' was never used on streams; did you mean 'send_message'?"


def test_queue_that_is_chosen_by_name_and_was_never_used_is_fine(app: MakeApp, redis_url: str) -> None:
    result = run(app(streams_queues=["send_message"]), "list", "-Q", "send_message")

    assert (result.exit_code, result.stdout) == (0, "No dead letters.\n")


@pytest.mark.parametrize("age", ["soon", "-5", "3y", "1h30m", ""])
def test_age_that_is_none_is_refused(app: MakeApp, redis_url: str, age: str) -> None:
    result = run(app(), "list", "--older-than", age)

    assert result.exit_code == 2
    assert f"{age!r} is not an age: give seconds, or 10m, 2h, 3d" in result.stderr


def test_redis_away_is_one_line_and_an_exit_code(app: MakeApp) -> None:
    result = run(app(streams_url=AWAY), "list")

    assert result.exit_code == 69
    assert one_line(result).startswith("Error: Redis at redis://127.0.0.1:1/0 cannot be reached: ")


@pytest.mark.parametrize("command", ["list", "show", "replay", "purge"])
def test_help_ends_with_examples(app: MakeApp, command: str) -> None:
    text = run(app(), command, "--help").stdout

    assert "Examples:" in text
    assert text.rstrip().splitlines()[-1].strip().startswith(f"celery-streams -A proj dead {command}")


def test_commands_below_celerys_own_program_fail_in_one_line_too() -> None:
    script = (
        "from celery.bin.celery import celery\n"
        "from celery_streams.bin.commands import streams\n"
        "celery.add_command(streams)\n"
        "celery()\n"
    )
    command = [sys.executable, "-c", script, "-A", "tests.proj", "streams"]
    environment = project_environment(broker=AWAY, results=AWAY, ledger=AWAY)

    for words in (["dead", "list"], ["doctor"], ["migrate", "q", "--to", "streams"]):
        done = subprocess.run([*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True)

        assert done.returncode == 69
        [line] = done.stderr.splitlines()
        assert line.startswith("Error: Redis at redis://127.0.0.1:1/0 cannot be reached: ")


def test_commands_are_reachable_from_the_root(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, 1)

    result = CliRunner().invoke(celery_streams, ["-A", "tests.proj", "dead", "--help"])

    assert all(word in result.stdout for word in ("list", "show", "replay", "purge"))
