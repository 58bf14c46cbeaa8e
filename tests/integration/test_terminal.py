"""What operators read: names that hold anything, narrow terminals, pipes, and misspelt names."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.utils.nodenames import gethostname
from click.testing import CliRunner, Result
from kombu import Queue
from rich.console import Console

from celery_streams import keys, streams_of
from celery_streams.bin.adopt import adopt
from celery_streams.bin.alerts import alerts
from celery_streams.bin.dead import dead
from celery_streams.bin.doctor import doctor
from celery_streams.bin.doctor import render as render_doctor
from celery_streams.bin.forget import forget
from celery_streams.bin.health import health
from celery_streams.bin.limits import limits
from celery_streams.bin.migrate import migrate
from celery_streams.bin.pause import pause, resume
from celery_streams.bin.purge import purge
from celery_streams.bin.status import render, status
from celery_streams.bin.tables import Rows
from celery_streams.broker import StreamBroker
from celery_streams.message import Message, encode
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.status import collect
from celery_streams.pauses import pause_queue
from celery_streams.presence import ConsumerPresence, WorkerPresence, beat
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, message

ROOT = Path(__file__).resolve().parents[2]

MakeApp = Callable[..., Celery]

#: Clears the screen, retitles the window, starts a new line, is rich's markup.
NASTY = "x\x1b[2J\x1b]0;owned\x07\n\x9b[red]é\x7f"


def run(command: Any, app: Celery, *words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(command, list(words), obj=CLIContext(app=app, no_color=True, workdir=None), input=answer)


def at_width(renderable: Any, width: int) -> list[str]:
    """Return the lines that a terminal of ``width`` columns shows."""
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, highlight=False).print(renderable)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def nasty_message() -> Message:
    properties = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 0, "n": NASTY}
    headers = {"id": NASTY, "task": NASTY, "lang": NASTY}
    return encode(headers, properties, json.dumps([[NASTY, {"k": NASTY}], {NASTY: NASTY}, {}]).encode())


def bury(broker: StreamBroker, one: Message, *, queue: str) -> str:
    [held] = delivered(broker, queue, "w", one)
    death = {"reason": "failed", "task": NASTY, "task_id": NASTY, "exception": NASTY, "traceback": f"T\n  {NASTY}"}
    death["worker"] = NASTY
    found = broker.reject("w", held.entry, death=json.dumps(death).encode(), max_length=None, ttl=None)
    assert found is not None
    return found.decode()


# -- what messages hold -----------------------------------------------------------------------------------------------


def test_nothing_of_a_message_reaches_the_terminal_as_a_control_sequence(app: MakeApp, broker: StreamBroker) -> None:
    project = app(worker_enable_remote_control=False)
    broken = Message(b"{" + NASTY.encode(), b"{}", NASTY.encode())
    entry_id = bury(broker, nasty_message(), queue=NASTY)
    bury(broker, broken, queue=NASTY)
    broker.publish(NASTY, nasty_message())
    commands = [
        (status, ()),
        (status, (NASTY, NASTY + "?")),
        (dead, ("list",)),
        (dead, ("show", NASTY, entry_id)),
        (status, ("--json",)),
        (dead, ("list", "--json")),
        (dead, ("show", NASTY, entry_id, "--json")),
        (dead, ("show", NASTY, NASTY + "?")),
        (dead, ("show", NASTY + "?", entry_id)),
        (dead, ("replay", "--all", "--dry-run")),
        (dead, ("replay", "--all", "--to", NASTY)),
        (dead, ("purge", "--all", "--dry-run")),
        (doctor, ("--no-workers",)),
        (migrate, (NASTY, "--to", "lists", "--dry-run")),
        (migrate, (NASTY + "?", "--to", "lists")),
        (migrate, (NASTY, "--to", "lists")),
        (forget, (NASTY,)),
        (forget, (NASTY, "--with-messages")),
        (purge, ("-f", "-Q", NASTY)),
    ]

    for command, words in commands:
        result = run(command, project, *words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        for line in (result.stdout + result.stderr).split("\n"):
            assert line.isprintable(), (command.name, words, line)


def test_nothing_that_workers_and_operators_say_reaches_the_terminal_as_a_control_sequence(
    app: MakeApp, broker: StreamBroker
) -> None:
    project = app(worker_enable_remote_control=False)
    broker.ensure_groups([NASTY])
    broker.publish(NASTY, nasty_message())
    pause_queue(broker, NASTY, reason=NASTY)
    consumers = (ConsumerPresence(f"{NASTY}@{gethostname()}/0.1", (), 50.0),)
    for worker, timeout in (("lives", 60.0), ("dies", 1.0)):
        node = f"{worker}{NASTY}@{gethostname()}"
        beat(broker, WorkerPresence(worker, node, 7, NASTY, timeout, (NASTY,), consumers), forget=False)
    lane = json.dumps({"task": NASTY, "first": 1, "last": 3, "number": 1})
    broker.client.call("HSET", broker.queue_keys(NASTY).shelf[1], NASTY, lane)
    broker.client.call("HSET", keys.limits(broker.prefix), NASTY, json.dumps({"concurrency": 1, NASTY: NASTY}))
    broker.client.call("XADD", NASTY, "*", NASTY, NASTY)
    commands = [
        (status, ()),
        (alerts, ()),
        (alerts, ("--json",)),
        (health, ()),
        (health, ("--json",)),
        (health, ("-n", f"dies{NASTY}")),
        (doctor, ("--no-workers",)),
        (limits, ()),
        (limits, ("--json",)),
        (limits, ("set", NASTY, "concurrency=1")),
        (limits, ("set", "celery.ping", NASTY)),
        (limits, ("reset", NASTY)),
        (pause, (NASTY, "--reason", NASTY)),
        (pause, (NASTY + "?",)),
        (resume, (NASTY,)),
        (adopt, (NASTY, "--task", NASTY, "--map", f"{NASTY}=a")),
        (adopt, (NASTY, "--task", "celery.ping", "--map", f"{NASTY}={NASTY}")),
        (adopt, (NASTY, "--task", "celery.ping", "--map", f"{NASTY}=a", "--dry-run")),
        (adopt, (NASTY, "--task", "celery.ping", "--map", f"{NASTY}=a:json", "-Q", NASTY)),
        (adopt, (NASTY + "?", "--task", "celery.ping", "--map", "a=a")),
        (dead, ("list", "--task", NASTY, "--reason", NASTY)),
    ]

    for command, words in commands:
        result = run(command, project, *words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        for line in (result.stdout + result.stderr).split("\n"):
            assert line.isprintable(), (command.name, words, line)


def test_line_break_in_an_exception_breaks_no_row(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, nasty_message(), queue="q")
    bury(broker, nasty_message(), queue="q")

    lines = run(dead, app(), "list").stdout.splitlines()

    assert len(lines) == 4  # header, rule, two rows


def test_name_that_looks_like_markup_is_shown_as_it_is(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish("[bold]q[/bold]", message(1))

    for command, words in ((status, ()), (migrate, ("[bold]q[/bold]", "--to", "lists", "--dry-run"))):
        assert "[bold]q[/bold]" in run(command, app(), *words).stdout


# -- narrow terminals and pipes ---------------------------------------------------------------------------------------

LONG = "notifications.send_message_to_everybody"


@pytest.mark.parametrize("width", [40, 60, 79, 100, 200])
def test_queue_names_are_whole_at_every_width(app: MakeApp, broker: StreamBroker, width: int) -> None:
    for queue in (LONG, "mark_as_read"):
        broker.publish(queue, message(1))

    lines = at_width(render(collect(streams_of(app(task_default_queue=LONG)))), width)

    for name in (LONG, "mark_as_read"):
        assert any(line.split()[:1] == [name] for line in lines)
    assert any("total" in line for line in lines)
    assert any("consumers" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80])
def test_blocks_of_a_narrow_terminal_say_what_each_figure_is(width: int) -> None:
    table = Rows(("queue", "waiting", "pending", "a very long header that fills the line"), right=("waiting",))
    table.add(LONG, 1, 2, 3)

    found = " ".join(" ".join(at_width(table, width)).split())

    assert LONG in found
    assert "a very long header that fills the line 3" in found or found.endswith(" 3")


def test_doctor_can_be_read_at_sixty_columns(app: MakeApp, broker: StreamBroker) -> None:
    broker.publish(LONG, message(1))

    lines = at_width(render_doctor(diagnose(streams_of(app()), ask_workers=False)), 60)

    assert any("critical" in line for line in lines)


def test_pipe_gets_one_line_for_each_queue_however_long_its_name_is(app: MakeApp, broker: StreamBroker) -> None:
    name = "q" * 300
    broker.publish(name, message(1))

    lines = run(status, app(task_default_queue=name)).stdout.splitlines()

    assert [line.split()[1] for line in lines if line.startswith(name)] == ["1"]


WATCH = """
import sys
from celery import Celery
from celery.bin.base import CLIContext
from celery_streams.bin.status import status
app = Celery('watched', broker=sys.argv[1])
status.main(['--watch', '--interval', '0.1', *sys.argv[2:]], obj=CLIContext(app, True, None))
"""


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watch_into_a_pipe_prints_each_look_at_once(
    redis_url: str, broker: StreamBroker, options: tuple[str, ...]
) -> None:
    broker.publish("send_message", message(1))
    # Without -u: the look must be flushed, for nobody sees a buffer.
    command = [sys.executable, "-c", WATCH, redis_url, *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = eventually(lambda: next((line for line in process.stdout if "send_message" in line), ""))  # type: ignore[union-attr]
            again = eventually(lambda: next((line for line in process.stdout if "send_message" in line), ""))  # type: ignore[union-attr]
            process.stdout.close()  # as head does
            code = process.wait(timeout=10)
            assert process.stderr is not None
            errors = process.stderr.read()
        finally:
            process.kill()

    assert "1" in first
    assert "1" in again
    assert "\x1b" not in first
    assert (code, errors) == (0, "")


# -- both sides -------------------------------------------------------------------------------------------------------


def cells(app: Celery, queue: str) -> list[str]:
    """Return the columns "list" and "to" of a queue."""
    line = next(line for line in run(status, app).stdout.splitlines() if line.startswith(queue))
    return line.split(maxsplit=7)[7].rstrip().split(maxsplit=1)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"streams_enabled": True, "streams_queues": ["jobs"]}, ["3", "stream"]),
        ({"streams_enabled": True, "streams_queues": {"jobs": 0.05}}, ["3", "5 %"]),
        ({"streams_enabled": True, "streams_queues": {"jobs": 0.0, "other": 1.0}}, ["3", "list"]),
        ({"streams_enabled": False, "streams_queues": ["jobs"]}, ["3", "list"]),
    ],
)
def test_status_shows_length_of_the_list_and_share_of_each_queue(
    app: MakeApp, broker: StreamBroker, settings: dict[str, Any], shown: list[str]
) -> None:
    broker.ensure_groups(["jobs"])
    for _ in range(2):
        broker.client.call("LPUSH", "jobs", "{}")
    broker.client.call("LPUSH", "jobs\x06\x163", "{}")  # of a lower priority

    project = app(**settings)

    assert cells(project, "jobs") == shown
    report = next(one for one in json.loads(run(status, project, "--json").stdout)["queues"] if one["queue"] == "jobs")
    assert (report["listed"], report["stock_workers"]) == (3, [])


@pytest.mark.parametrize("enabled", [True, False])
def test_messages_on_a_list_that_nobody_consumes_are_critical_everywhere(
    app: MakeApp, broker: StreamBroker, enabled: bool
) -> None:
    broker.client.call("LPUSH", "jobs", "{}")
    project = app(streams_enabled=enabled, streams_queues=["jobs", "fine"])

    result = run(status, project)
    found = collect(streams_of(project))
    odd = [one for one in diagnose(streams_of(project), ["jobs"]).findings if one.level == "critical" and one.queue]

    assert result.exit_code == 2
    assert "jobs: 1 waiting on Celery's list, and no stock worker consumes it" in result.stdout
    assert [(one.queue, one.name) for one in found.alerts] == [("jobs", "no_stock_worker")]
    assert [one.check for one in odd] == ["both worlds"]
    assert run(doctor, project, "jobs", "--accept", "persistence").exit_code == 2


def test_list_without_remote_control_is_judged_by_its_length(app: MakeApp, broker: StreamBroker) -> None:
    broker.client.call("LPUSH", "jobs", *["{}"] * 5)
    project = app(
        streams_enabled=False,
        streams_queues=["jobs"],
        worker_enable_remote_control=False,
        streams_alerts={"list_backlog_warning": 5},
    )

    [alert] = collect(streams_of(project)).alerts

    assert (alert.level, alert.name, alert.value) == ("warning", "list_backlog", 5)


def test_broker_that_is_away_hides_only_the_lists(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    broker.publish("jobs", message(1))
    project = app(broker_url="redis://127.0.0.1:1/0", streams_url=redis_url, streams_queues=["jobs"])

    found = collect(streams_of(project))

    assert found.queues[0].state.waiting == 1
    assert found.queues[0].side.length is None
    assert found.lists_trouble is not None
    assert "Celery's lists cannot be read" in run(status, project).stdout


def test_broker_that_is_no_redis_has_no_lists(app: MakeApp, broker: StreamBroker, redis_url: str) -> None:
    project = app(broker_url="amqp://127.0.0.1:1//", streams_url=redis_url, streams_queues=["jobs"])

    found = collect(streams_of(project))

    assert (found.queues[0].side.length, found.lists_trouble) == (None, None)


# -- misspelt names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"task_queues": [Queue("send_message")]},
        {"task_routes": {"chat.*": {"queue": "send_message"}}},
        {"task_routes": {"chat.*": "send_message"}},
        {"task_routes": [("chat.*", {"queue": "send_message"})]},
        {"task_routes": ({"chat.send": {"queue": Queue("send_message")}},)},
        {"task_default_queue": "send_message"},
    ],
)
@pytest.mark.parametrize("choice", [["send_mesage"], {"send_mesage": 0.1}])
def test_misspelt_queue_is_said_with_the_name_that_a_route_or_queue_has(
    app: MakeApp, settings: dict[str, Any], choice: Any
) -> None:
    project = app(streams_queues=choice, **settings)

    [alert] = collect(streams_of(project)).alerts
    findings = {one.check: one for one in diagnose(streams_of(project), ask_workers=False).findings}

    assert (alert.queue, alert.name, alert.level) == ("send_mesage", "unknown_queue", "warning")
    assert "did you mean 'send_message'" in alert.message
    assert findings["names"].level == "warning"
    assert "did you mean 'send_message'" in findings["names"].what
    assert findings["names"].why == "Messages for 'send_message' go to Celery's list."
    assert run(status, project).exit_code == 1


def test_misspelt_queue_is_said_with_the_name_that_a_task_or_a_message_has(app: MakeApp, broker: StreamBroker) -> None:
    project = app(streams_queues=["calls", "mark_as_raed"])

    @project.task(name="late.task")
    def task() -> None: ...

    project.finalize()
    project.tasks["late.task"].queue = "call"  # as an option of its decorator, without the warning of Celery's

    broker.publish("mark_as_read", message(1))

    found = {one.queue: one.message for one in collect(streams_of(project)).alerts if one.name == "unknown_queue"}

    assert "did you mean 'call'?" in found["calls"]
    assert "did you mean 'mark_as_read'?" in found["mark_as_raed"]


def test_misspelt_queue_is_said_although_a_worker_reads_it(app: MakeApp, broker: StreamBroker) -> None:
    project = app(streams_queues=["send_mesage"], task_default_queue="send_message")
    broker.ensure_groups(["send_mesage"])  # as a worker without -Q does
    before = [one.name for one in collect(streams_of(project)).alerts]
    delivered(broker, "send_mesage", "w", message(1))

    after = [one.name for one in collect(streams_of(project)).alerts]

    assert before == ["unknown_queue"]
    assert "unknown_queue" not in after


def test_misspelt_pattern_is_said_with_the_right_one(app: MakeApp, broker: StreamBroker) -> None:
    project = app(streams_queues=["caht.*", "mail.*", "x*"], task_queues=[Queue("chat.send"), Queue("mail.send")])

    [alert] = collect(streams_of(project)).alerts
    findings = [one for one in diagnose(streams_of(project), ask_workers=False).findings if one.check == "names"]

    assert (alert.queue, alert.name) == ("caht.*", "unknown_queue")
    assert "did you mean 'chat.*'" in alert.message
    assert [one.level for one in findings] == ["warning"]


def test_dead_letters_are_not_replayed_to_a_misspelt_queue(app: MakeApp, broker: StreamBroker) -> None:
    bury(broker, message(1), queue="send_message")

    refused = run(dead, app(), "replay", "--all", "--to", "send_mesage")
    # A new queue whose name begins with that of another one, as in the help.
    passed = run(dead, app(), "replay", "--all", "--to", "send_message_slow")

    assert refused.exit_code == 2
    assert "did you mean 'send_message'?" in refused.stderr
    assert passed.exit_code == 0


def test_status_of_a_queue_that_is_on_its_list_only_shows_the_list(app: MakeApp, broker: StreamBroker) -> None:
    broker.client.call("LPUSH", "jobs", "{}")

    found = collect(streams_of(app(streams_queues=["other"], task_default_queue="other")), ["jobs"])

    assert [one.name for one in found.alerts] == ["no_stock_worker"]


def test_names_that_are_known_or_like_no_other_are_no_mistake(app: MakeApp, broker: StreamBroker) -> None:
    broker.client.call("LPUSH", "emials", "{}")
    project = app(
        streams_queues=["email", "emails", "emials", "reports", "chat.*"],
        task_queues=[Queue("email"), Queue("emails"), Queue("celery")],
    )

    found = collect(streams_of(project))

    assert [one for one in found.alerts if one.name == "unknown_queue"] == []


@pytest.mark.parametrize("name", ["CELERY_STREAM_URL", "CELERYSTREAMS_QUEUES", "CELERY_STREMS_ENABLED"])
def test_misspelt_environment_variable_is_said_with_the_right_one(
    app: MakeApp, broker: StreamBroker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    right = "CELERY_STREAMS_" + name.rpartition("_")[2]

    project = app()
    result = run(status, project)
    findings = {one.check: one for one in diagnose(streams_of(project), ask_workers=False).findings}

    assert f"{name} is not a setting and has no effect; did you mean '{right}'?" in result.stdout
    assert result.exit_code == 1
    assert findings["settings"].level == "warning"


def test_misspelt_setting_of_the_app_is_said(app: MakeApp, broker: StreamBroker) -> None:
    found = collect(streams_of(app(stream_queues=["a"])))

    assert [one.message for one in found.settings] == [
        "stream_queues is not a setting and has no effect; did you mean 'streams_queues'?"
    ]


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CHAT_STREAM_URL", "CELERY_STREAMING_URL", "CELERY_TASK_QUEUES"])
def test_environment_variable_of_somebody_else_is_left_alone(
    app: MakeApp, broker: StreamBroker, redis_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, redis_url)

    assert collect(streams_of(app())).settings == ()


# -- accepted findings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--accept", "persistence"), ("--accept", "memory,persistence")])
def test_doctor_gates_a_server_without_persistence_when_that_is_accepted(
    app: MakeApp, broker: StreamBroker, words: tuple[str, ...]
) -> None:
    project = app()

    refused = run(doctor, project, "--no-workers")
    passed = run(doctor, project, "--no-workers", *words)
    as_json = json.loads(run(doctor, project, "--no-workers", *words, "--json").stdout)

    assert refused.exit_code == 2
    assert passed.exit_code == 0, passed.stdout
    assert "accepted" in passed.stdout
    [finding] = [one for one in as_json["findings"] if one["check"] == "persistence"]
    assert (finding["level"], finding["accepted"], as_json["level"] == "critical") == ("critical", True, False)


def test_accepting_a_check_that_does_not_exist_names_the_nearest(app: MakeApp) -> None:
    result = run(doctor, app(), "--accept", "persistance")

    assert result.exit_code == 2
    assert "did you mean 'persistence'?" in result.stderr


# -- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "words",
    [("status",), ("dead", "list"), ("alerts",), ("dead", "replay", "--all", "--dry-run"), ("doctor", "--no-workers")],
    ids=" ".join,
)
def test_terminal_without_the_letters_of_a_name_gets_them_escaped(
    app: MakeApp, broker: StreamBroker, encoding: str, words: tuple[str, ...]
) -> None:
    letters = "\u00fcn\u00ef-\u2603-\u8868"
    bury(broker, nasty_message(), queue=letters)
    command = {"status": status, "dead": dead, "alerts": alerts, "doctor": doctor}[words[0]]

    result = CliRunner(charset=encoding).invoke(
        command, list(words[1:]), obj=CLIContext(app=app(), no_color=True, workdir=None)
    )

    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    # click takes ASCII for a mistake, and writes UTF-8 there.
    written = [letters.encode(encoding, "backslashreplace"), *([letters.encode()] if encoding == "ascii" else [])]
    assert any(one in result.stdout_bytes for one in written), result.stdout_bytes
