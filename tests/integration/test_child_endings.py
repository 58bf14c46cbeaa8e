"""The end of a child is seen at once, whatever its task has left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import billiard
import pytest

from celery_streams.concurrency.process import Child, Ending, end_by_force
from celery_streams.poll import readable
from celery_streams.worker.slots import SlotTable

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd on this system")


def die_before_a_process_of_ones_own(noted: str) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)  # until it is killed
        os._exit(0)
    Path(noted).write_text(str(pid))
    os._exit(9)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_end_of_a_child_is_seen_while_a_process_that_its_task_forked_lives_on(tmp_path: Path, method: str) -> None:
    noted = tmp_path / "pid"
    process = billiard.get_context(method).Process(target=die_before_a_process_of_ones_own, args=(os.fspath(noted),))
    process.start()
    ending = Ending(process)

    seen = readable([ending.fileno()], timeout=20)

    orphan = int(noted.read_text())
    try:
        os.kill(orphan, 0)
        assert seen == [ending.fileno()]
        process.join()
        assert process.exitcode == 9
    finally:
        os.kill(orphan, signal.SIGKILL)
        ending.close()


def test_what_was_opened_for_a_child_is_closed_once() -> None:
    process = billiard.get_context("fork").Process(target=time.sleep, args=(0,))
    process.start()
    ending = Ending(process)
    descriptor = ending.fileno()

    process.join()
    ending.close()
    ending.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def be_deaf(told: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    told.set()
    time.sleep(60)  # until it is killed


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_children_that_block_sigterm_are_killed_together() -> None:
    context = billiard.get_context("fork")
    children, table, nothing = [], SlotTable(shared_by_path=False), cast("Any", None)
    for index in range(40):
        told = context.Event()
        process = context.Process(target=be_deaf, args=(told,))
        process.start()
        assert told.wait(20)
        child = Child(index, process, table.slot(index), "w/1", nothing, Ending(process), 0.0)
        children.append(child)

    began = time.monotonic()
    end_by_force(children)
    took = time.monotonic() - began

    for child in children:
        child.process.join()
        child.ending.close()
    table.close()
    assert {child.process.exitcode for child in children} == {-signal.SIGKILL}
    assert took < 3.0, "a tenth of a second for each would be four"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_ends_that_the_main_thread_notices_meanwhile_do_not_hold_up_the_others() -> None:
    context = billiard.get_context("fork")
    table, nothing = SlotTable(shared_by_path=False), cast("Any", None)
    told = context.Event()
    deaf = context.Process(target=be_deaf, args=(told,))
    deaf.start()
    assert told.wait(20)
    quick = [context.Process(target=time.sleep, args=(60,)) for _ in range(5)]
    for process in quick:
        process.start()
    children = [
        Child(index, process, table.slot(index), "w/1", nothing, Ending(process), 0.0)
        for index, process in enumerate([*quick, deaf])
    ]

    def notice() -> None:
        """Close what belongs to each child at once, as the event loop does when it hears of the end."""
        for child in children[:-1]:
            readable([child.ending.fileno()], timeout=20)
            child.process.join()
            child.ending.close()

    noticing = threading.Thread(target=notice)
    noticing.start()
    end_by_force(children)
    noticing.join()
    end_by_force(children[:-1])  # they are closed by now
    deaf.join()
    children[-1].ending.close()
    table.close()

    assert deaf.exitcode == -signal.SIGKILL
    assert {process.exitcode for process in quick} == {-signal.SIGTERM}
