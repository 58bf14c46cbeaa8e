"""Slots: what a child says of its batch, what the parent may take back, and that both never have the same entry."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_streams.entries import Entry, StreamRef
from celery_streams.message import Message
from celery_streams.worker.runner import Record
from celery_streams.worker.slots import MAX_BATCH, Slot, SlotTable, Snapshot

FIRST = StreamRef("a", 0, "celery-streams:{a}")
SECOND = StreamRef("b", 1, "celery-streams:{b}:3")


def ids(held: tuple[Entry, ...]) -> list[str]:
    return [one.id.decode() for one in held]


def shown(shot: Snapshot) -> tuple[list[str], str | None, list[str]]:
    return ids(shot.finished), shot.running.id.decode() if shot.running else None, ids(shot.waiting)


@pytest.fixture
def table() -> Iterator[SlotTable]:
    made = SlotTable()
    made.streams[:] = [FIRST, SECOND]
    yield made
    made.close()


@pytest.fixture
def child(table: SlotTable) -> Slot:
    slot = table.slot(3)
    slot.attach(4711)
    return slot


@pytest.fixture
def parent(table: SlotTable) -> Slot:
    return table.slot(3)


def load(child: Slot, count: int) -> None:
    child.load([(0, b"%d-0" % (number + 1)) for number in range(count)])


def begin(child: Slot, index: int) -> bool:
    return child.begin(index)


def run(child: Slot, index: int) -> None:
    assert begin(child, index)
    child.finish(index)


def test_new_child_holds_nothing(child: Slot, parent: Slot) -> None:
    shot = parent.snapshot()

    assert (shot.pid, shot.done, shown(shot)) == (4711, 0, ([], None, []))


def test_loaded_batch_waits(child: Slot, parent: Slot) -> None:
    child.load([(0, b"1700000000000-0"), (1, b"18446744073709551615-18446744073709551615")])

    assert parent.snapshot().waiting == (
        Entry(FIRST, b"1700000000000-0"),
        Entry(SECOND, b"18446744073709551615-18446744073709551615"),
    )


def test_batch_of_the_greatest_size_is_held_in_order(child: Slot, parent: Slot) -> None:
    load(child, MAX_BATCH)

    assert ids(parent.snapshot().waiting) == [f"{number + 1}-0" for number in range(MAX_BATCH)]


def test_begun_entry_runs_and_the_rest_waits(child: Slot, parent: Slot) -> None:
    load(child, 3)

    assert begin(child, 0)

    assert shown(parent.snapshot()) == ([], "1-0", ["2-0", "3-0"])


def test_finished_entry_is_held_until_it_is_settled(child: Slot, parent: Slot) -> None:
    load(child, 3)
    run(child, 0)
    run(child, 1)

    assert shown(parent.snapshot()) == (["1-0", "2-0"], None, ["3-0"])

    child.settled(1)

    assert shown(parent.snapshot()) == (["2-0"], None, ["3-0"])
    assert parent.snapshot().done == 2


def test_new_batch_takes_the_place_of_the_old_one(child: Slot, parent: Slot) -> None:
    load(child, 3)
    run(child, 0)
    before = parent.snapshot()

    child.load([(1, b"9-9")])

    after = parent.snapshot()
    assert after.batch != before.batch
    assert (after.finished, after.running, after.waiting) == ((), None, (Entry(SECOND, b"9-9"),))


def test_cleared_slot_holds_nothing(child: Slot, parent: Slot) -> None:
    load(child, 3)
    begin(child, 0)

    parent.clear()

    assert shown(parent.snapshot()) == ([], None, [])


def test_slots_do_not_touch_each_other(table: SlotTable, child: Slot) -> None:
    neighbours = [table.slot(2), table.slot(4)]
    for pid, slot in enumerate(neighbours):
        slot.attach(pid)
        load(slot, MAX_BATCH)

    child.load([(0, b"7-7")] * MAX_BATCH)
    child.keep(Message(b"h" * 60_000, b"p", b"b"))
    child.attach(4712)

    assert [len(slot.snapshot().waiting) for slot in neighbours] == [MAX_BATCH, MAX_BATCH]
    assert child.snapshot().waiting == ()


def test_time_limits_are_those_of_the_running_task(child: Slot, parent: Slot) -> None:
    load(child, 2)
    child.begin(0)
    child.limit(soft=5.0, hard=7.5)
    first = parent.snapshot()

    child.limit(soft=None, hard=1.0)
    second = parent.snapshot()

    assert (first.soft, first.hard, first.started_at > 0) == (5, 7.5, True)
    assert (second.soft, second.hard, second.started_at) == (None, 1, first.started_at)


def test_time_limits_end_with_the_task(child: Slot, parent: Slot) -> None:
    load(child, 2)
    child.begin(0)
    child.limit(soft=5.0, hard=7.5)
    child.finish(0)

    child.begin(1)

    assert (parent.snapshot().soft, parent.snapshot().hard) == (None, None)


# -- taking back


def test_restricted_entries_do_not_start(child: Slot, parent: Slot) -> None:
    load(child, 4)
    begin(child, 0)

    shot = parent.restrict()

    child.finish(0)
    assert shown(shot) == ([], "1-0", ["2-0", "3-0", "4-0"])
    assert not begin(child, 1)
    assert shown(parent.snapshot()) == (["1-0"], None, ["2-0", "3-0", "4-0"])


def test_restriction_ends_with_its_batch(child: Slot, parent: Slot) -> None:
    load(child, 2)
    parent.restrict()

    load(child, 2)

    assert not child.restricted()
    assert begin(child, 0)


def test_child_knows_that_its_batch_was_restricted(child: Slot, parent: Slot) -> None:
    load(child, 2)
    before = child.restricted()

    parent.restrict()

    assert (before, child.restricted()) == (False, True)


def test_returned_entries_are_held_no_longer(child: Slot, parent: Slot) -> None:
    load(child, 4)
    run(child, 0)
    begin(child, 1)
    shot = parent.restrict()

    parent.returned(shot.batch)

    assert shown(shot) == (["1-0"], "2-0", ["3-0", "4-0"])
    assert shown(parent.snapshot()) == ([], "2-0", [])


def test_task_that_ran_while_others_were_handed_back_is_held_until_it_is_settled(child: Slot, parent: Slot) -> None:
    load(child, 3)
    begin(child, 0)
    parent.returned(parent.restrict().batch)

    child.finish(0)

    assert shown(parent.snapshot()) == (["1-0"], None, [])

    child.settled(1)

    assert shown(parent.snapshot()) == ([], None, [])


def test_entries_of_a_newer_batch_are_not_taken_for_returned(child: Slot, parent: Slot) -> None:
    load(child, 2)
    shot = parent.restrict()
    load(child, 2)

    parent.returned(shot.batch)

    assert shown(parent.snapshot()) == ([], None, ["1-0", "2-0"])


class Overtaken(Slot):
    """The parent's view of a slot whose child is faster once: it loads a new batch just before the parent looks."""

    child: Slot | None

    def snapshot(self) -> Snapshot:
        child, self.child = self.child, None
        if child is not None:
            load(child, 5)
        return super().snapshot()


def test_batch_that_is_loaded_while_the_parent_restricts_is_restricted_too(child: Slot, table: SlotTable) -> None:
    parent = Overtaken(child._memory, child.index, table.streams, spool=child._spool)
    parent.child = child
    load(child, 2)

    shot = parent.restrict()

    assert len(shot.waiting) == 5
    assert not begin(child, 0)


# -- what the parent says


def test_child_is_told_that_its_running_entry_is_lost(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)

    parent.mark_lost(parent.snapshot().batch)

    assert child.lost()


def test_lost_entry_is_not_mistaken_for_the_next_one(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    parent.mark_lost(parent.snapshot().batch)
    child.finish(0)

    assert begin(child, 1)

    assert not child.lost()


def test_loss_in_an_older_batch_says_nothing_of_the_new_one(child: Slot, parent: Slot) -> None:
    load(child, 1)
    begin(child, 0)
    old = parent.snapshot().batch
    load(child, 1)
    begin(child, 0)

    parent.mark_lost(old)

    assert not child.lost()


def test_outcome_that_is_being_settled_is_that_of_the_running_task_alone(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    child.settling()
    first = parent.snapshot().settling
    child.finish(0)
    begin(child, 1)

    assert (first, parent.snapshot().settling) == (True, False)


def test_loss_takes_nothing_back(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    parent.mark_lost(parent.snapshot().batch)
    child.finish(0)

    assert not child.restricted()
    assert begin(child, 1)


def test_restriction_and_loss_do_not_hide_each_other(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    parent.restrict()
    parent.mark_lost(parent.snapshot().batch)
    parent.restrict()

    assert (child.lost(), child.restricted(), begin(child, 1)) == (True, True, False)


def test_request_to_terminate_outlives_batches_and_restrictions(child: Slot, parent: Slot) -> None:
    before = child.terminate_asked()
    parent.ask_terminate()
    load(child, 1)
    parent.restrict()
    load(child, 1)
    parent.mark_lost(parent.snapshot().batch)

    assert (before, child.terminate_asked()) == (False, True)


def test_sigterm_for_a_task_ends_that_task_however_often_it_comes(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    child.finish(0)
    begin(child, 1)

    assert parent.terminate_task(Entry(FIRST, b"2-0"))
    assert [child.task_terminated() for _ in range(3)] == [True] * 3


def test_sigterm_for_a_task_that_ended_meanwhile_is_neither_for_the_next_one_nor_for_the_process(
    child: Slot, parent: Slot
) -> None:
    load(child, 1)
    begin(child, 0)
    assert parent.terminate_task(Entry(FIRST, b"1-0"))
    child.finish(0)
    load(child, 1)
    begin(child, 0)

    late = child.task_terminated()

    assert late is False
    assert child.task_terminated() is None, "the next SIGTERM is another one"


@pytest.mark.parametrize("state", ["between two tasks", "in the next task", "in the next batch", "idle"])
def test_task_that_does_not_run_any_more_is_not_terminated(child: Slot, parent: Slot, state: str) -> None:
    load(child, 2)
    begin(child, 0)
    child.finish(0)
    if state == "in the next task":
        begin(child, 1)
    elif state == "in the next batch":
        child.load([(0, b"7-0")])
        begin(child, 0)
    elif state == "idle":
        child.clear()

    assert not parent.terminate_task(Entry(FIRST, b"1-0"))
    assert child.task_terminated() is None


def test_task_of_another_queue_with_the_same_entry_id_is_not_terminated(child: Slot, parent: Slot) -> None:
    child.load([(1, b"1-0")])
    begin(child, 0)

    assert not parent.terminate_task(Entry(FIRST, b"1-0"))
    assert parent.terminate_task(Entry(SECOND, b"1-0"))


def test_nothing_of_its_batch_starts_after_a_task_that_is_terminated(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    parent.terminate_task(Entry(FIRST, b"1-0"))
    child.finish(0)

    assert not begin(child, 1)


def test_next_child_of_the_slot_is_asked_nothing(child: Slot, parent: Slot) -> None:
    load(child, 2)
    parent.ask_terminate()
    parent.restrict()

    child.attach(4712)
    load(child, 2)

    assert (child.terminate_asked(), child.lost(), child.restricted(), begin(child, 0)) == (False, False, False, True)


# -- the message that was acknowledged before it ran


def test_message_of_a_task_that_was_acknowledged_early_is_kept(child: Slot, parent: Slot) -> None:
    kept = Message(b'{"id":"x"}', b"{}", bytes(range(256)), b'{"first":"1-0"}', 2)
    load(child, 2)
    begin(child, 0)

    child.keep(kept)

    assert (parent.kept_message(), parent.snapshot().acked_early) == (kept, True)


@pytest.mark.parametrize(
    "kept",
    [
        Message(b"headers", b"properties", b"b" * 100_000, b"history", 1),
        Message(b"h" * 100_000, b"properties", b"body"),
        Message(b"headers", b"properties", b"b" * 5_000_000),
    ],
)
def test_message_that_is_too_large_for_the_slot_is_kept_beside_it(child: Slot, parent: Slot, kept: Message) -> None:
    load(child, 1)
    begin(child, 0)

    child.keep(kept)

    assert (parent.kept_message(), parent.snapshot().acked_early) == (kept, True)
    assert parent._spool.stat().st_mode & 0o077 == 0
    parent.clear()
    assert (parent.kept_message(), parent._spool.exists()) == (None, False)


def test_message_that_can_be_kept_nowhere_is_said(
    child: Slot, parent: Slot, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    logging.getLogger("celery_streams.worker.slots").addHandler(caplog.handler)
    child._spool = tmp_path / "no such folder" / "spool"
    load(child, 1)
    begin(child, 0)

    child.keep(Message(b"headers", b"properties", b"b" * 100_000))

    assert parent.kept_message() is None
    logging.getLogger("celery_streams.worker.slots").removeHandler(caplog.handler)
    assert "cannot be kept" in caplog.text


def test_next_task_was_not_acknowledged_early(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    child.keep(Message(b"{}", b"{}", b""))
    child.finish(0)

    begin(child, 1)

    assert not parent.snapshot().acked_early


def test_exit_of_the_body_is_seen_beside_the_early_acknowledgement(child: Slot, parent: Slot) -> None:
    load(child, 2)
    begin(child, 0)
    child.keep(Message(b"{}", b"{}", b""))

    child.exited()

    assert (parent.snapshot().acked_early, parent.snapshot().exited) == (True, True)


# -- processes


def _work(slot: Slot, load_and_die: bool) -> None:
    slot.attach(os.getpid())
    load(slot, 3)
    run(slot, 0)
    begin(slot, 1)
    if load_and_die:
        os.kill(os.getpid(), 9)


def test_what_a_killed_process_held_can_be_read(table: SlotTable, parent: Slot) -> None:
    process = multiprocessing.get_context("fork").Process(target=_work, args=(parent, True))
    process.start()
    process.join(10)

    assert process.exitcode == -9
    assert shown(parent.snapshot()) == (["1-0"], "2-0", ["3-0"])
    assert parent.snapshot().pid == process.pid


def test_spawned_process_writes_to_the_same_slot_and_knows_the_streams() -> None:
    table = SlotTable(shared_by_path=True)
    table.streams[:] = [FIRST, SECOND]
    script = (
        "import pickle, sys; table = pickle.load(sys.stdin.buffer); slot = table.slot(1); slot.attach(42);"
        "slot.load([(1, b'5-6')]); table.close()"
    )

    subprocess.run([sys.executable, "-c", script], input=pickle.dumps(table), check=True, timeout=30)

    assert table.slot(1).snapshot().waiting == (Entry(SECOND, b"5-6"),)
    assert os.path.exists(table.path)  # the process that made the file removes it

    table.close()

    assert not os.path.exists(table.path)


def test_table_for_forks_leaves_no_file() -> None:
    assert not os.path.exists(SlotTable().path)


ROUNDS = 10_000


def _race(slot: Slot, marks: mmap.mmap, stop: mmap.mmap) -> None:
    """Load batches and start what may be started; mark what was started."""
    slot.attach(os.getpid())
    for number in range(ROUNDS):
        slot.load([(0, b"%d-%d" % (number, index)) for index in range(4)])
        for index in range(4):
            if not slot.begin(index):
                break
            marks[number * 4 + index] = 1
            slot.finish(index)
    stop[0] = 1


def test_entry_is_never_both_started_and_taken_back(table: SlotTable, parent: Slot) -> None:
    started, stop = mmap.mmap(-1, ROUNDS * 4), mmap.mmap(-1, 1)
    taken = bytearray(ROUNDS * 4)
    process = multiprocessing.get_context("fork").Process(target=_race, args=(parent, started, stop))

    process.start()
    while not stop[0] and process.is_alive():
        shot = parent.restrict()
        for held in shot.waiting:
            number, index = map(int, held.id.split(b"-"))
            taken[number * 4 + index] = 1
    process.join(10)

    assert process.exitcode == 0
    assert [at for at in range(ROUNDS * 4) if started[at] and taken[at]] == []
    # It was a race: some were started, and some were taken back.
    assert any(started)
    assert any(taken)


def test_snapshot_never_mixes_two_batches(table: SlotTable, parent: Slot) -> None:
    started, stop = mmap.mmap(-1, ROUNDS * 4), mmap.mmap(-1, 1)
    process = multiprocessing.get_context("fork").Process(target=_race, args=(parent, started, stop))
    process.start()

    mixed, looks = [], 0
    while looks == 0 or (not stop[0] and process.is_alive()):
        shot = parent.snapshot()
        looks += 1
        batches = {one.id.split(b"-")[0] for one in (*shot.finished, *shot.waiting, shot.running) if one}
        if len(batches) > 1:
            mixed.append(batches)
    process.join(10)

    assert (process.exitcode, mixed) == (0, [])
    assert looks > 0


@pytest.mark.parametrize(("limit", "shown"), [(5.0, "5"), (0.5, "0.5"), (None, "None")])
def test_time_limit_is_shown_as_it_was_written_by_a_thread_too(limit: float | None, shown: str) -> None:
    record = Record("w@h/1.aa")

    record.limit(soft=limit, hard=limit)

    shot = record.snapshot()
    assert (repr(shot.soft), repr(shot.hard)) == (shown, shown)
