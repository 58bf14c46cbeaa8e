"""Own process: what keeps our code out of processes that a task forks.

A task may fork: ``os.fork``, ``multiprocessing``, ``concurrent.futures``. Such a process inherits our signal handlers,
under which ``terminate()`` would not end it, and when it leaves the task it would go on in our loop and settle the
message of the task, which is still at work in its parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

from celery.app.trace import TraceInfo
from celery.states import READY_STATES

from ..celery_private import current_task
from ..running_task import current

__all__ = ("end_foreign_process", "guard_forks")

#: Signals whose handlers are ours, or Celery's, and mean nothing in a process that a task forked.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")

#: Those that wait while a process is being forked: the new one would lose them (Python forgets there what came before
#: it was ready) instead of ending. Not the one of the soft time limit: its exception would be lost in our own hook.
_WAITING = {getattr(signal, name) for name in _SIGNALS if name != "SIGUSR1" and hasattr(signal, name)}

_guarded = threading.Event()


class _Mask(threading.local):
    """The signals that the forking thread had blocked before it forked."""

    before: set[Any] | None = None


_mask = _Mask()


def guard_forks() -> None:
    """Give processes that tasks fork from here on the signal handlers that they would have without a worker.

    Called by each process that runs tasks, once it has set its own handlers. Signals that are ignored stay ignored, as
    in Celery's pools.
    """
    if not _guarded.is_set():
        _guarded.set()
        os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_disown)


def _hold_signals() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING)


def _let_signals() -> None:
    if _mask.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)
        _mask.before = None


def _disown() -> None:
    _restore_signals()
    _let_signals()
    running = current.get()
    if running is None:
        return
    # The tracer would store what became of the task, which is at work in the parent.
    handle = TraceInfo.handle_error_state

    def end_instead(self: Any, task: Any, req: Any, eager: bool = False, **options: Any) -> Any:
        if not eager:
            end_foreign_process()
        return handle(self, task, req, eager=eager, **options)

    TraceInfo.handle_error_state = end_instead
    TraceInfo.handle_ignore = TraceInfo.handle_reject = lambda *args, **options: end_foreign_process()
    task = current_task()
    if task is None:
        return
    backend, store = task.backend, task.backend.store_result

    def store_other(task_id: str, result: Any, state: str, *args: Any, **options: Any) -> Any:
        if task_id == running.task_id and state in READY_STATES:
            end_foreign_process()
        return store(task_id, result, state, *args, **options)

    backend.store_result = store_other


def _restore_signals() -> None:
    for name in _SIGNALS:
        signum = getattr(signal, name, None)
        if signum is not None and callable(signal.getsignal(signum)):
            signal.signal(signum, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def end_foreign_process() -> NoReturn:
    """End this process, which a task forked, when it leaves the task's code; called in a ``finally``.

    It ends as Python would end it: with the code of SystemExit, with 1 and a traceback for any other exception, else
    with 0; no ``finally`` further out and no ``atexit`` handler of its parent runs.
    """
    exc = sys.exc_info()[1]
    code = 0
    try:
        if isinstance(exc, SystemExit):
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        elif exc is not None:
            traceback.print_exception(exc)
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)
