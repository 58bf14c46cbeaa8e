"""Paused queues: what Redis keeps of a pause, and how a reader passes over them, waits, and goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.app.control import Control
from celery.bin.base import CLIContext
from click import Command
from click.testing import CliRunner, Result

import celery_streams
from celery_streams import inspect as streams_inspect
from celery_streams import keys, pauses, presence
from celery_streams.bin.pause import pause, resume
from celery_streams.bin.status import status
from celery_streams.broker import StreamBroker
from celery_streams.dead_letters import dead_letters, replay
from celery_streams.entries import Delivery
from celery_streams.exceptions import GroupMissing
from celery_streams.lanes import Lane, admit, let_go, release
from celery_streams.monitoring.doctor import diagnose
from celery_streams.monitoring.status import collect
from celery_streams.recovery import recover
from celery_streams.removal import forget_queue
from celery_streams.worker.pauses import PauseWatch
from tests.integration.test_reader import Reading, publish, reading
from tests.support.eventually import eventually
from tests.support.redis_state import delivered, message, number_of, redis_state

__all__ = ("reading",)

MakeReading = Callable[..., Reading]
MakeApp = Callable[..., Celery]


def waits_for_a_resumption(broker: StreamBroker) -> bool:
    return b"cmd=xread " in broker.client.call("CLIENT", "LIST")


def test_read_passes_over_a_paused_queue_and_its_front_and_reads_the_others_at_once(
    broker: StreamBroker, reading: MakeReading
) -> None:
    # Given a paused queue with messages on its streams and in its front
    broker.ensure_groups(["q", "other"])
    put_back = delivered(broker, "q", "w@h/1", message(3))
    publish(broker, 1, 2, 4)
    broker.put_back("w@h/1", [one.entry for one in put_back])
    pauses.pause_queue(broker, "q")
    publish(broker, 5, queue="other", step=3)
    mine = reading("q", "other")
    before = redis_state(broker.client)["celery-streams:{q}"]

    # When a reader reads, whoever's turn it is
    found = [mine.next(), mine.next(), mine.next()]

    # Then it gets what the other queue has, although its priority is lower, and touches nothing of the paused one
    assert found == [[5], [], []]
    assert mine.reader.paused == {"q"}
    assert redis_state(broker.client)["celery-streams:{q}"].pending == before.pending

    # And when it is resumed, all is as it would have been
    pauses.resume_queue(broker, "q")
    assert [mine.next(1)[0] for _ in range(4)] == [3, 1, 2, 4]


def test_blocked_reader_is_called_back_and_starts_nothing_that_comes_meanwhile(
    broker: StreamBroker, reading: MakeReading
) -> None:
    # Given a reader that blocks
    broker.ensure_groups(["q"])
    mine = reading()
    mine.on_command = lambda: setattr(mine.reader, "streams", list(mine.reader.streams))
    mine.wait()

    # When the queue is paused, a message comes before the reader hears of it, and the next one behind
    pauses.pause_queue(broker, "q")
    mine.reader.disarm()
    publish(broker, 1, 2)
    mine.command()
    eventually(mine.ended)

    # Then nothing is started, and the order is as it was
    assert mine.found == []
    pauses.resume_queue(broker, "q")
    assert [mine.next(1)[0] for _ in range(2)] == [1, 2]


def test_what_a_read_that_was_ended_brought_of_a_paused_queue_goes_back_to_its_place(
    broker: StreamBroker, reading: MakeReading
) -> None:
    # Given a blocking read whose reply is under way while the queue is paused
    broker.ensure_groups(["q"])
    mine = reading()
    mine.reader.arm()
    publish(broker, 1, 2, 3)
    eventually(mine.reader.due)
    pauses.pause_queue(broker, "q")

    # When it is called back
    mine.reader.disarm()
    found = mine.reader.collect()

    # Then it brings nothing, and what it had read is the first again
    assert found == []
    assert streams_inspect.queue_status(broker, "q").pending == 0
    pauses.resume_queue(broker, "q")
    assert [mine.next(1)[0] for _ in range(3)] == [1, 2, 3]


def test_message_that_comes_after_the_pause_was_told_of_does_not_start_though_its_reader_has_not_heard_yet(
    broker: StreamBroker, reading: MakeReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a reader that is told of a pause, and a message that comes before it looks, as in a busy process
    broker.ensure_groups(["q"])
    mine = reading()
    mine.on_command = lambda: setattr(mine.reader, "streams", list(mine.reader.streams))
    arm = mine.reader.arm

    def arm_late() -> Any:
        descriptors = arm()
        monkeypatch.undo()
        pauses.pause_queue(broker, "q")
        mine.command()
        publish(broker, 1, 2)
        eventually(mine.reader.due)
        return descriptors

    monkeypatch.setattr(mine.reader, "arm", arm_late)

    # When it reads
    found = mine.next(block=True)

    # Then nothing starts, and the order is as it was
    assert found == []
    pauses.resume_queue(broker, "q")
    assert [mine.next(1)[0] for _ in range(2)] == [1, 2]


def test_command_that_changes_nothing_keeps_what_was_read_while_it_came(
    broker: StreamBroker, reading: MakeReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.ensure_groups(["q"])
    mine = reading()
    arm = mine.reader.arm

    def arm_late() -> Any:
        descriptors = arm()
        mine.command()
        publish(broker, 1, 2)
        eventually(mine.reader.due)
        return descriptors

    monkeypatch.setattr(mine.reader, "arm", arm_late)

    assert mine.next(block=True) == [1]
    assert mine.heard == 1


def test_reader_of_a_long_queue_looks_at_each_read(broker: StreamBroker, reading: MakeReading) -> None:
    # Given a reader in the midst of thousands of messages, which it reads without the script
    broker.ensure_groups(["q"])
    publish(broker, *range(1_000))
    mine = reading()
    assert [len(mine.next(100)) for _ in range(3)] == [100, 100, 100]

    # When the queue is paused
    pauses.pause_queue(broker, "q")

    # Then its next read brings nothing, and the order stays
    assert [mine.next(100), mine.next(100)] == [[], []]
    pauses.resume_queue(broker, "q")
    assert [number for _ in range(7) for number in mine.next(100)] == list(range(300, 1_000))


def test_reader_of_nothing_but_paused_queues_waits_without_asking_and_goes_on_at_once(
    broker: StreamBroker, reading: MakeReading
) -> None:
    broker.ensure_groups(["q"])
    pauses.pause_queue(broker, "q")
    publish(broker, 1)
    mine = reading()
    assert mine.next() == []
    thread = threading.Thread(target=lambda: mine.found.extend(mine.reader.next(10) or mine.reader.next(10)))
    thread.start()
    eventually(lambda: waits_for_a_resumption(broker))
    asked = broker.client.call("INFO", "commandstats").decode().partition("cmdstat_evalsha:calls=")[2].split(",")[0]

    publish(broker, 2)
    again = broker.client.call("INFO", "commandstats").decode().partition("cmdstat_evalsha:calls=")[2].split(",")[0]
    pauses.resume_queue(broker, "q")
    thread.join(timeout=4)

    assert again == asked  # a publish wakes nobody
    assert [number_of(one) for one in mine.found] == [1, 2]


def test_pause_is_kept_from_its_first_moment_on_and_may_say_why(broker: StreamBroker) -> None:
    first = pauses.pause_queue(broker, "q")
    again = pauses.pause_queue(broker, "q", reason="the provider is down")

    assert again.since == first.since
    assert pauses.paused_queues(broker, ["q", "other"]) == {"q": again}
    assert pauses.resume_queue(broker, "q")
    assert not pauses.resume_queue(broker, "q")
    assert pauses.paused_queues(broker, ["q"]) == {}


@pytest.mark.parametrize("written", ["1", "", "yes, until Monday", "\xff"])
def test_key_that_somebody_wrote_by_hand_pauses_too(broker: StreamBroker, reading: MakeReading, written: str) -> None:
    broker.ensure_groups(["q"])
    publish(broker, 1)
    broker.client.call("SET", broker.queue_keys("q").paused, written.encode("latin-1"))

    assert reading().next() == []
    assert streams_inspect.queue_status(broker, "q").paused is not None


def test_publishes_and_delayed_messages_go_on_and_what_is_due_waits(broker: StreamBroker, reading: MakeReading) -> None:
    broker.ensure_groups(["q"])
    pauses.pause_queue(broker, "q")
    publish(broker, 1)
    broker.delay("q", message(2), due_ms=1, member="2:0")

    moved = broker.promote(["q"]).moved

    assert moved == 1
    found = streams_inspect.queue_status(broker, "q")
    assert (found.waiting, found.delayed) == (2, 0)
    assert reading().next() == []


def promote_all(broker: StreamBroker) -> None:
    key = broker.queue_keys("q").delayed
    for member in broker.client.call("ZRANGE", key, 0, -1):
        broker.client.call("ZADD", key, 1, member)
    broker.promote(["q"])


def hold(broker: StreamBroker, one: Delivery) -> None:
    lane = Lane("t", json.dumps({"task": "t", "rate": "t", "interval": 1.0}), lasting=False)
    assert not admit(broker, "w@h/1", one.entry, lane, penalty_ms=1).admitted


def release_all(broker: StreamBroker) -> None:
    eventually(lambda: release(broker, ["q"], {}).count == 1, interval=0.01)


def die(broker: StreamBroker, one: Delivery) -> None:
    assert broker.reject("w@h/1", one.entry, death=b'{"reason":"failed"}', max_length=None, ttl=None)
    (letter,) = dead_letters(broker, "q")
    assert replay(broker, letter)


def crash(broker: StreamBroker, pause_ms: int) -> None:
    recover(broker, "q", "w@h/2", idle_ms=0, turn_ms=1, pauses_ms=[pause_ms])


#: What may become of a message that runs, and how it comes to its queue then.
INTO_A_PAUSE: dict[str, Callable[[StreamBroker, Delivery], Any]] = {
    "put back": lambda broker, one: broker.put_back("w@h/1", [one.entry]),
    "requeued": lambda broker, one: broker.requeue("w@h/1", one.entry, history={}),
    "requeued behind": lambda broker, one: broker.requeue("w@h/1", one.entry, history={}, behind=True),
    "requeued for later": lambda broker, one: (
        broker.requeue("w@h/1", one.entry, history={}, delay_ms=9_000),
        promote_all(broker),
    ),
    "retried": lambda broker, one: broker.retry("w@h/1", one.entry, message(1), queue="q"),
    "retried later": lambda broker, one: (
        broker.retry("w@h/1", one.entry, message(1), queue="q", due_ms=4_000_000_000_000, member="m"),
        promote_all(broker),
    ),
    "recovered": lambda broker, one: crash(broker, 0),
    "recovered for later": lambda broker, one: (crash(broker, 9_000), promote_all(broker)),
    "replayed": die,
    "held and released": lambda broker, one: (hold(broker, one), release_all(broker)),
    "held and let go": lambda broker, one: (hold(broker, one), let_go(broker, "q")),
}


@pytest.mark.parametrize("others_wait", [False, True], ids=["empty", "others wait"])
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("way", INTO_A_PAUSE)
def test_whatever_comes_to_a_paused_queue_waits_and_goes_on_when_it_is_resumed(
    broker: StreamBroker, reading: MakeReading, way: str, step: int, others_wait: bool
) -> None:
    (running,) = delivered(broker, "q", "w@h/1", message(1, step=step))
    if others_wait:
        publish(broker, 2, step=step)
    mine = reading()
    pauses.pause_queue(broker, "q", reason="why")

    INTO_A_PAUSE[way](broker, running)

    found = streams_inspect.queue_status(broker, "q")
    assert (found.pending, found.delayed, found.held, found.dead) == (0, 0, 0, 0)
    assert (found.waiting, found.paused is not None) == (2 if others_wait else 1, True)
    assert mine.next() == []
    pauses.resume_queue(broker, "q")
    first = mine.next(2)
    assert sorted([*first, *(mine.next(2) if len(first) < 1 + others_wait else [])]) == [1, 2][: 1 + others_wait]


def test_resumption_of_a_queue_that_is_not_paused_leaves_no_key_behind(broker: StreamBroker) -> None:
    before = redis_state(broker.client)

    assert not pauses.resume_queue(broker, "nobody's")

    broker.client.call("DEL", keys.news(broker.prefix))
    assert redis_state(broker.client) == before


def test_pause_is_in_the_log_once_readers_were_called_back_and_not_before(
    broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    posted: list[Callable[[], None]] = []
    watch = PauseWatch(broker, lambda: ["q"], posted.append)
    pauses.pause_queue(broker, "q")

    with caplog.at_level("INFO", "celery_streams.worker.pauses"):
        assert watch.run_once() == ["q"]
        assert caplog.messages == []
        posted.pop()()
        assert "Queue q is paused: its tasks do not start." in caplog.text
        pauses.resume_queue(broker, "q")
        watch.run_once()
        posted.pop()()

    assert caplog.messages[1:] == ["Queue q is resumed."]


def test_forgotten_queue_leaves_no_pause_behind(broker: StreamBroker) -> None:
    before = redis_state(broker.client)
    broker.ensure_groups(["q"])
    pauses.pause_queue(broker, "q")

    forget_queue(broker, "q")
    broker.client.call("DEL", keys.news(broker.prefix))

    assert redis_state(broker.client) == before


# -- what people and programs see


@pytest.fixture
def project(app: MakeApp, broker: StreamBroker) -> Celery:
    broker.ensure_groups(["q"])
    return app()


@pytest.mark.parametrize("queue", [None, "", 5, ["q"]])
def test_what_is_no_name_of_a_queue_is_refused(project: Celery, broker: StreamBroker, queue: Any) -> None:
    before = redis_state(broker.client)

    for change in (project.control.pause_queue, project.control.resume_queue):
        with pytest.raises(TypeError, match="by its name, got"):
            change(queue)

    assert redis_state(broker.client) == before


def run(command: Command, project: Celery, *words: str) -> Result:
    return CliRunner().invoke(command, list(words), obj=CLIContext(app=project, no_color=True, workdir=None))


def test_commands_pause_and_resume_and_refuse_a_name_that_was_never_used(project: Celery, broker: StreamBroker) -> None:
    assert run(pause, project, "q", "--reason", "deploy\n  of Monday").output == "Queue q is paused.\n"
    assert pauses.paused_queues(broker, ["q"])["q"].reason == "deploy of Monday"
    assert run(resume, project, "q").output == "Queue q is resumed.\n"
    assert run(resume, project, "q").output == "Queue q was not paused.\n"
    for command in (pause, resume):
        refused = run(command, project, "qq")
        assert refused.exit_code == 2
        assert "did you mean 'q'?" in refused.output


def test_app_pauses_and_resumes_as_its_control_does(project: Celery, broker: StreamBroker) -> None:
    control: Any = project.control

    celery_streams.pause(project, "q", reason="why")
    assert control.pause_queue("q", reason="why") == pauses.paused_queues(broker, ["q"])["q"]
    assert control.resume_queue("q") is True
    assert celery_streams.resume(project, "q") is False


class OwnControl(Control):
    """A project's own."""

    def own(self) -> str:
        return "own"


@pytest.mark.parametrize("built", [False, True], ids=["before", "after"])
def test_control_class_of_the_project_stays(app: MakeApp, broker: StreamBroker, built: bool) -> None:
    class OwnApp(Celery):
        control_cls = OwnControl

    made = app(installed=False, cls=OwnApp)
    if built:
        assert made.control.own() == "own"

    celery_streams.install(made, enabled=True)

    assert made.control.own() == "own"
    assert isinstance(made.control, OwnControl)
    assert made.control.pause_queue("q").queue == "q"
    assert "q" in pauses.paused_queues(broker, ["q"])


def test_pause_is_in_the_status_the_metrics_and_the_alerts(app: MakeApp, broker: StreamBroker) -> None:
    prometheus = pytest.importorskip("celery_streams.monitoring.prometheus")
    project = app(streams_alerts={"paused_warning": 1, "no_consumer_critical": None})
    broker.ensure_groups(["q"])
    publish(broker, 1)
    broker.client.call("SET", broker.queue_keys("q").paused, f"{broker.clock_ms() - 5_000} the provider is down")

    (found,) = collect(celery_streams.streams_of(project), ["q"]).queues
    text = run(status, project, "q").output
    (shown,) = json.loads(run(status, project, "q", "--json").output)["queues"]
    metrics = prometheus.exposition(celery_streams.streams_of(project)).decode()

    assert found.state.paused is not None
    assert 5 <= found.state.paused < 60
    assert [alert.name for alert in found.alerts] == ["paused"]
    assert "paused  q: for 5." in text
    assert "(the provider is down); its tasks do not start" in text
    assert "q: has been paused for 5" in text
    assert (shown["pause_reason"], shown["paused"] >= 5) == ("the provider is down", True)
    assert 'celery_streams_queue_paused_seconds{queue="q"} 5.' in metrics


def test_doctor_names_the_pause_and_workers_that_know_of_none(project: Celery, broker: StreamBroker) -> None:
    celery_streams.pause(project, "q", reason="why")
    consumer = presence.ConsumerPresence("old@h/1", None, 0.0)
    about = presence.WorkerPresence("w", "old@h", 1, "0", 15.0, ("q",), (consumer,))
    presence.beat(broker, about, forget=False)

    findings = diagnose(celery_streams.streams_of(project), ["q"], ask_workers=False).findings

    first, second = (one for one in findings if one.check == "paused")
    assert (first.level, second.level) == ("critical", "warning")
    assert "old@h" in first.what
    assert second.what.endswith("s: why")
    assert "resume q" in second.todo


def test_read_of_more_queues_than_lua_can_pass_at_once(broker: StreamBroker) -> None:
    streams = broker.streams(f"q{number}" for number in range(9_000))
    broker.ensure_groups(["q8999"])
    pauses.pause_queue(broker, "q8999")

    with pytest.raises(GroupMissing):  # of the first queue: every other reply would be an error of the script
        broker.read(streams, "w", count=1)
