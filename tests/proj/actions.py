"""One task that does whatever a test asks for, and its variants with other task options; plain Celery."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings

from billiard.exceptions import Terminated
from celery import Task, group, shared_task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger
from celery.worker import state as worker_state
from celery.worker.control import inspect_command
from kombu.exceptions import OperationalError

from . import ledger

logger = get_task_logger(__name__)


class ActionError(Exception):
    """A failure that a test asked for."""


class ExpectedError(Exception):
    """A failure that the task names in ``throws``."""


class TransientError(Exception):
    """A failure that the task names in ``autoretry_for``."""


class Recorded(Task):
    """A user's own Task class: each of its methods leaves a line in the ledger."""

    def _record(self, task_id, hook, **fields):
        ledger.write("hook", task_id, hook=hook, retries=self.request.retries, **fields)

    def before_start(self, task_id, args, kwargs):
        self._record(task_id, "before_start")

    def on_success(self, retval, task_id, args, kwargs):
        self._record(task_id, "on_success")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self._record(task_id, "on_failure", exception=repr(exc))

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self._record(task_id, "on_retry")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self._record(task_id, "after_return", status=status)


class HookFails(Recorded):
    """Its ``on_failure`` raises what the argument ``hook`` says."""

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        super().on_failure(exc, task_id, args, kwargs, einfo)
        raise {"operational": OperationalError, "soft": SoftTimeLimitExceeded, "os": TimeoutError}[kwargs["hook"]]()


class OddError(BaseException):
    """What a task raises that is no Exception."""


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """An exception whose attributes cannot be set, as several libraries have it."""

    text: str


class ReprError(Exception):
    """An exception that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


class CauseError(Exception):
    """An exception that lies about what caused it."""

    @property
    def __cause__(self):  # type: ignore[override]
        raise RuntimeError("no cause")


class StrError(Exception):
    """An exception without a text."""

    def __str__(self):
        raise RuntimeError("no text")


class SetError(Exception):
    """An exception that takes no attribute, and says so with an error of its own."""

    def __setattr__(self, name, value):
        raise RuntimeError(f"no {name}")


class BoolError(Exception):
    """An exception that is neither true nor false, equal to nothing, and no key of a dictionary."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self):
        raise RuntimeError("no truth")

    def __eq__(self, other):
        raise RuntimeError("no equality")


class PickleError(Exception):
    """An exception that cannot be pickled or copied."""

    def __reduce_ex__(self, protocol):
        raise RuntimeError("no pickle")


class ArgsError(Exception):
    """An exception whose arguments cannot be had."""

    @property
    def args(self):  # type: ignore[override]
        raise RuntimeError("no args")


class ContextError(Exception):
    """An exception that lies about where it was raised."""

    @property
    def __context__(self):  # type: ignore[override]
        raise RuntimeError("no context")

    @property
    def __traceback__(self):  # type: ignore[override]
        raise RuntimeError("no traceback")


class ClassError(Exception):
    """An exception that says it is of another class."""

    __class__ = property(lambda self: KeyError)  # type: ignore[assignment]


class LoopError(Exception):
    """An exception that caused itself."""

    def __init__(self, *args):
        super().__init__(*args)
        self.__cause__ = self.__context__ = self


class InitError(Exception):
    """An exception that cannot be made again of its arguments."""

    def __init__(self, text, *, code=7):
        super().__init__()
        self.code, self.lock = code, threading.Lock()


def several(text):
    """Return a group of exceptions, one of them frozen; an exception before Python 3.11."""
    group = getattr(builtins, "ExceptionGroup", None)
    return ActionError(text) if group is None else group(text, [FrozenError(text), ReprError(text)])


#: What else an exception may raise when somebody looks at it.
BASE_ERRORS = {"exit": SystemExit, "generator": GeneratorExit, "own": OddError}

#: Where somebody may look.
PLACES = (
    "__bool__", "__cause__", "__class__", "__context__", "__eq__", "__getattribute__", "__hash__", "__reduce_ex__",
    "__repr__", "__setattr__", "__str__", "__traceback__", "args", "add_note", "with_traceback",
)  # fmt: skip


def hostile(place, kind):
    """Return an exception that raises one of :data:`BASE_ERRORS` when somebody looks at one of :data:`PLACES`."""

    def look(self, *args):
        raise BASE_ERRORS[kind](f"at {place}")

    is_attribute = place in ("__cause__", "__class__", "__context__", "__traceback__", "args")
    return type("HostileError", (Exception,), {place: property(look) if is_attribute else look})("hostile")


ODD = {
    "cancelled": asyncio.CancelledError,
    "generator": GeneratorExit,
    "own": OddError,
    "frozen": FrozenError,
    "repr": ReprError,
    "cause": CauseError,
    "str": StrError,
    "set": SetError,
    "bool": BoolError,
    "pickle": PickleError,
    "args": ArgsError,
    "context": ContextError,
    "class": ClassError,
    "loop": LoopError,
    "init": InitError,
    "several": several,
    "terminated": Terminated,
}

#: How a body ends its process, as far as it can.
EXITS = {
    "nothing": SystemExit,
    "number": functools.partial(SystemExit, 3),
    "text": functools.partial(SystemExit, "bye"),
    "keyboard": functools.partial(KeyboardInterrupt, "why"),
}


def run_action(task, action, value=None, **options):
    """Record the execution, then do ``action``."""
    request = task.request
    ledger.write(
        "run",
        request.id,
        task=task.name,
        action=action,
        value=value,
        retries=request.retries,
        redelivered=(request.delivery_info or {}).get("redelivered"),
        hostname=request.hostname,
    )
    try:
        return _ACTIONS[action](task, value, **options)
    finally:
        ledger.write("end", request.id)


def _ok(task, value):
    return value


def _repr(task, value):
    return repr(value)


def _error(task, value):
    raise ActionError(value)


def _expected_error(task, value):
    raise ExpectedError(value)


def _transient_error(task, value, until=1):
    """Fail with an error for autoretry until the task was retried ``until`` times."""
    if task.request.retries < until:
        raise TransientError(value)
    return task.request.retries


def _retry(task, value, until=1, **options):
    """Retry until the task was retried ``until`` times."""
    if task.request.retries < until:
        raise task.retry(**options)
    return value


def _retry_error(task, value, **options):
    """Retry because of an exception, for ever."""
    try:
        raise ActionError(value)
    except ActionError as exc:
        raise task.retry(exc=exc, **options) from exc


def _retry_with(task, value, args, kwargs):
    """Retry once, with other arguments."""
    raise task.retry(args=args, kwargs=kwargs, countdown=0)


def _retry_then_request(task, value, **options):
    """Retry once, then return what ``self.request`` holds."""
    if task.request.retries == 0:
        raise task.retry(**options)
    return _request(task, value)


def _retry_quietly(task, value):
    """Retry once without leaving the task, as ``throw=False`` allows."""
    if task.request.retries == 0:
        task.retry(throw=False, countdown=0)
        return "went on"
    return value


def _raise(task, value, kind):
    raise ODD[kind](value)


def _raise_hostile(task, value, place, kind):
    raise hostile(place, kind)


def _retry_odd(task, value, kind, countdown=0):
    """Retry once because of an exception of an odd class."""
    if task.request.retries == 0:
        raise task.retry(exc=ODD[kind](value), countdown=countdown)
    return value


def _retry_then(task, value, then, **options):
    """Ask for a retry that does not leave the task, then end in another way."""
    if task.request.retries == 0:
        task.retry(throw=False, countdown=0.6)
        return _ACTIONS[then](task, value, **options)
    return value


def _retry_caught_then(task, value, then, **options):
    """Ask for a retry, catch what that raises, then end in another way."""
    if task.request.retries == 0:
        try:
            task.retry(countdown=0.6)
        except Retry:
            return _ACTIONS[then](task, value, **options)
    return value


def _terminate_process(task, value, after=0.1):
    """Terminate a process of multiprocessing ``after`` seconds, and return its exit code."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined] # else it refuses, as stock does
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=False)
    process.start()
    time.sleep(after)
    process.terminate()
    process.join(10)
    return process.exitcode


def _fork_terminated(task, value, signum=signal.SIGTERM, after=0.1):
    """Fork a process that sleeps, send it a signal ``after`` seconds, and return the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        time.sleep(8)
        os._exit(7)
    time.sleep(after)
    os.kill(pid, signum)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def _fork_leaves(task, value, how, seconds=0.5):
    """Fork a process that leaves the task, and return its exit code when the task ends a while later."""
    pid = os.fork()
    if pid == 0:
        if how == "exit":
            sys.exit(3)
        if how == "error":
            raise ActionError("of the fork")
        if how == "odd":
            raise OddError("of the fork")
        if how == "retry":
            raise task.retry(countdown=0)
        if how == "reject":
            raise Reject("of the fork", requeue=False)
        return "from the fork"
    code = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    time.sleep(seconds)
    return code


def _fork_outlives(task, value, seconds=30):
    """Leave a process behind, then end this one by force, the first time."""
    if ledger.count("run", task.request.id) > 1:
        return value
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
    ledger.write("forked", task.request.id, child=pid)
    os.kill(os.getpid(), signal.SIGKILL)


def _cripple(task, value, how):
    """Leave this process so that it cannot store the outcome."""
    if how == "warnings":
        warnings.simplefilter("error")
    elif how == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    elif how == "sockets":
        socket.socket.connect = _no_socket  # type: ignore[method-assign]
    task.backend.client.connection_pool.disconnect()
    return value


def _no_socket(*args):
    raise RuntimeError("no sockets here")


def _reject(task, value):
    raise Reject(value, requeue=False)


def _reject_requeue(task, value, times=1):
    """Put the message back the first ``times`` times it is delivered."""
    if ledger.count("run", task.request.id) <= times:
        raise Reject(value, requeue=True)
    return value


def _ignore(task, value):
    raise Ignore


def _exit(task, value):
    sys.exit(1)


def _leave(task, value, how):
    raise EXITS[how]()


def _os_exit(task, value, times=1):
    if ledger.count("run", task.request.id) <= times:
        os._exit(1)
    return value


def _kill(task, value, times=1, after=0.0):
    """Kill this process the first ``times`` times the task runs."""
    if ledger.count("run", task.request.id) <= times:
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def _kill_worker(task, value, times=1):
    """Kill all processes of this worker, the first ``times`` times the task runs."""
    if ledger.count("run", task.request.id) <= times:
        os.killpg(0, signal.SIGKILL)
    return value


def _sleep(task, value, seconds=0.1):
    time.sleep(seconds)
    return value


def _linger(task, value, seconds=30, after=1.0):
    """Sleep, and take a while to end when somebody ends it."""
    try:
        time.sleep(seconds)
    finally:
        time.sleep(after)


def _meet(task, value, count):
    """End when ``count`` of these run at once in this process."""
    _meetings.setdefault(count, threading.Barrier(count)).wait(15)
    return value


def _sleep_first(task, value, seconds=0.1):
    """Sleep the first time it runs only."""
    if ledger.count("run", task.request.id) <= 1:
        time.sleep(seconds)
    return value


def _after_gate(task, value, gate, then, **options):
    """Wait until the file ``gate`` is there, then do ``then``."""
    while not os.path.exists(gate):
        time.sleep(0.01)
    return _ACTIONS[then](task, value, **options)


def _spin(task, value, seconds=0.1):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return value


def _soft_limit(task, value, seconds=5.0):
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return value


def _big(task, value, size=1_000_000):
    return "x" * size


def _unserialisable(task, value):
    return object()


def _progress(task, value):
    task.update_state(state="PROGRESS", meta={"done": value})
    raise Ignore


def _request(task, value):
    """Return everything that ``self.request`` holds."""
    fields = {name: field for name, field in vars(task.request).items() if not name.startswith("_")}
    return json.loads(json.dumps(fields, default=repr))


def _publish(task, value):
    """Publish another task from inside the task."""
    return act.delay("ok", value).id


def _get(task, value):
    """Wait for the result of another task."""
    return act.delay("ok", value).get(timeout=15)


def _send_event(task, value):
    """Send an event of the task's own."""
    task.send_event("task-own", value=value)
    return value


def _replace(task, value):
    raise task.replace(act.s("ok", value))


def _replace_by_group(task, value):
    raise task.replace(group(act.si("ok", value), act.si("ok", value)))


def _told(task, value):
    """Return what ``self.request`` holds of the ways to call."""
    names = (
        *(
            "retries",
            "shadow",
            "argsrepr",
            "kwargsrepr",
            "ignore_result",
            "timelimit",
            "replaced_task_nesting",
            "stamps",
        ),
        *("stamped_headers", "root_id", "parent_id", "group", "group_index", "chord", "chain", "callbacks", "errbacks"),
        *("headers", "eta", "is_eager", "called_directly"),
    )
    return json.loads(json.dumps({name: getattr(task.request, name) for name in names}, default=repr))


def _add_to_chord(task, value):
    """Let one more task finish before the body of the chord, if this is one."""
    if task.request.chord:
        task.add_to_chord(act.si("ok", value))
    return value


def _log(task, value):
    logger.info("logged by the task: %s", value)
    print(f"printed by the task: {value}")
    return value


_meetings: dict[int, threading.Barrier] = {}

_ACTIONS = {
    name[1:]: function for name, function in list(globals().items()) if name.startswith("_") and callable(function)
}


@shared_task(bind=True, base=Recorded)
def act(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded)
def act_counted(self, action, value=None, **options):
    """For one test alone, which counts its executions."""
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded)
def act_totals(self, action, value=None, **options):
    """For the tests of totals alone."""
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, throws=(ExpectedError,))
def act_throws(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, autoretry_for=(TransientError,), retry_kwargs={"max_retries": 2, "countdown": 0})
def act_autoretry(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, autoretry_for=(TransientError,), retry_backoff=True, retry_jitter=False)
def act_backoff(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=HookFails)
def act_hook_fails(self, action, value=None, hook=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, ignore_result=True)
def act_ignored(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, track_started=True)
def act_tracked(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, streams_unique=True)
def act_unique(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, streams_unique=True, streams_unique_key="value", streams_unique_until="start")
def act_unique_until_start(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(
    bind=True, base=Recorded, streams_concurrency=2, streams_concurrency_key="value", streams_concurrency_per_key=1
)
def act_in_turn(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, rate_limit="10/s")
def act_limited(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, soft_time_limit=0.5, time_limit=20)
def act_soft_limited(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, reject_on_worker_lost=False)
def act_not_again(self, action, value=None, **options):
    """Not run again when its process dies, as Celery has it where it acknowledges early."""
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, acks_late=True, reject_on_worker_lost=True)
def act_late(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded, acks_late=False, streams_acks_late=False)
def act_early(self, action, value=None, **options):
    return run_action(self, action, value, **options)


@shared_task(bind=True, base=Recorded)
def act_routed(self, action, value=None, **options):
    """The settings route it to another queue than the default one."""
    return run_action(self, action, value, **options)


@shared_task(bind=True, ignore_result=True)
def act_paced(self):
    """Record the execution and nothing else, and take as long as the test wants at this moment."""
    request = self.request
    redelivered = (request.delivery_info or {}).get("redelivered")
    time.sleep(ledger.write("run", request.id, task=self.name, redelivered=redelivered, hostname=request.hostname))


@shared_task
def add(x, y):
    return x + y


@shared_task
def total(numbers):
    return sum(numbers)


@shared_task
def collect(*args, **kwargs):
    return [list(args), kwargs]


@shared_task
def double(x):
    return x * 2


@shared_task(bind=True)
def fail(self, *args):
    ledger.write("run", self.request.id, task=self.name)
    raise ActionError("failed in a canvas")


@shared_task(bind=True)
def remember(self, *args):
    """Record what a callback, chord or link was called with, under the id of the task."""
    ledger.write("called", self.request.id, args=args, parent=self.request.parent_id, root=self.request.root_id)
    return list(args)


@shared_task
def on_error(request, exc, traceback):
    """An errback of the new style: called in place, with everything."""
    ledger.write("errback", request.id, exception=repr(exc), text=str(exc), traceback=traceback)


@shared_task(bind=True)
def on_error_by_id(self, task_id):
    """An errback of the old style: a task of its own, which gets nothing but the id."""
    ledger.write("errback", task_id, style="id")


@inspect_command()
def what_runs(state):
    """A project's own command, which looks at Celery's sets as a guard against scaling in does."""
    return {
        "known": sorted(worker_state.requests),
        "active": sorted(request.id for request in worker_state.active_requests),
        "count": len(worker_state.active_requests),
        "reserved": len(worker_state.reserved_requests),
    }
