"""Celery's insides: every private name of Celery, kombu and billiard that this package uses, and nothing else uses.

An upgrade may take any of them away. ``tests/unit/test_celery_private.py`` has a test for each, which says what breaks
then, and where to look for what took its place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from types import CellType, ModuleType
from typing import TYPE_CHECKING, Any

import click
import click_plugins  # type: ignore[import-untyped]
from billiard import common
from celery import _state, signals
from celery.app.amqp import AMQP
from celery.app.task import Context, Task
from celery.local import PromiseProxy
from kombu import Connection, serialization
from kombu.messaging import Producer
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils import json

if TYPE_CHECKING:
    from celery import Celery

__all__ = (
    "active_apps",
    "autoretried_function",
    "change_backends",
    "choose_backends",
    "chord_claims_are_known",
    "config_source",
    "consumes_from_chosen",
    "context_of",
    "current_task",
    "decodes_json",
    "default_app",
    "encodes_json",
    "error_of_retry",
    "exchange_task_stack",
    "follow_batch",
    "forget_producer_pool",
    "import_program_alone",
    "is_ending",
    "makes_tasks_later",
    "on_new_tasks",
    "preferred_apps",
    "publish_batch",
    "publish_code",
    "pydantic_cell",
    "raise_decoding_error",
    "real_app",
    "registered_task",
    "registered_tasks",
    "remember_custom_headers",
    "replace_in_sender",
    "set_autoretried_function",
    "stop_polling",
    "success_was_stored",
    "take_broker_urls",
    "was_cancelled",
    "was_revoked",
    "worker_task",
)


# -- apps (celery._state, celery.app.base)


def active_apps() -> list[Celery]:
    """Return all apps of this process that are still referred to."""
    return list(_state._get_active_apps())


def default_app() -> Celery | None:
    """Return the app that was made default, None when there is none yet."""
    return _state.default_app


def preferred_apps() -> list[Celery]:
    """Return the current app of this thread and the default app, as far as there are any; none is made."""
    return [app for app in (_state._tls.current_app, _state.default_app) if app is not None]


def real_app(proxy: Any) -> Celery:
    """Return the app behind ``celery.current_app``."""
    return proxy._get_current_object()


def config_source(app: Celery) -> Any:
    """Return what ``app.config_from_object`` was given; it is not read here."""
    return app._config_source


# -- publishing (celery.app.amqp)


def forget_producer_pool(amqp: Any) -> None:
    """Have ``app.amqp`` make its pool of producers again at the next use."""
    amqp._producer_pool = None


def replace_in_sender(send: Any, make: Callable[[Any], Any]) -> None:
    """Have Celery's task sender call ``make(signal)`` in the place of ``signal.send`` after it has published.

    A user's own sender, which keeps no such thing, goes on to send the signals at the call.
    """
    names = getattr(getattr(send, "__code__", None), "co_freevars", ())
    for name, signal in (
        ("send_after_publish", signals.after_task_publish),
        ("send_task_sent", signals.task_sent),
    ):
        if name in names:
            send.__closure__[names.index(name)].cell_contents = make(signal)


def publish_code(app: Any) -> tuple[Any, ...]:
    """Return the functions of Celery and kombu that a publish calls one after another, as they are now."""
    cls = type(app)
    return (
        *(cls.send_task, cls.producer_or_acquire, cls.thread_oid.fget),
        *(AMQP.as_task_v2, AMQP._create_task_sender, AMQP.Router),
        *(Producer.publish, Producer._publish, Producer._prepare, Producer._delivery_details),
    )


def new_result(app: Any, made_by: Any, task_id: str) -> Any:
    """Return what ``made_by(task_id)`` does, the ``result_cls`` of a publish; None stands for ``app.AsyncResult``.

    Celery's own ``Task.AsyncResult`` asks for the app, and through it for the backend, at four places; that takes
    longer than all else that belongs to a result.
    """
    if made_by is None:
        return app.AsyncResult(task_id)
    if getattr(made_by, "__func__", None) is Task.AsyncResult:
        task = made_by.__self__
        kind = type(task)
        if task._backend is None and kind.backend is Task.backend and kind._app is app and kind.__bound__:
            results = app.__dict__.get("AsyncResult") or app.AsyncResult
            return results(task_id, backend=app.backend, task_name=task.name)
    return made_by(task_id)


def encodes_json() -> bool:
    """Return whether kombu encodes ``json`` with its own JSON, and nobody registered anything else for it."""
    known = serialization.registry._encoders.get("json")
    return known is not None and known.encoder is json.dumps


def publish_batch(producer: Any) -> Any:
    """Return the state of the ``Producer.batch`` that is open in this thread; None when there is none (kombu 5.7)."""
    return getattr(producer.__dict__.get("_batch_local"), "current", None)


def follow_batch(batch: Any, *, flush: Callable[[], None], discard: Callable[[], None]) -> None:
    """Have a batch of kombu also call ``flush`` and ``discard`` when it stores, or drops, what it holds."""
    own_flush, own_abort = batch.flush, batch.abort

    def flush_both() -> None:
        flush()
        own_flush()

    def abort_both() -> None:
        discard()
        own_abort()

    batch.flush, batch.abort = flush_both, abort_both


def consumes_from_chosen(queues: Any) -> bool:
    """Return whether ``app.amqp.queues`` were narrowed (``-Q``)."""
    return queues._consume_from is not None


# -- tasks (celery.app.task, celery.app.autoretry, celery._state)


def current_task() -> Any:
    """Return the task that runs in this thread, None outside of one."""
    return _state.get_current_task()


def worker_task(app: Any) -> Any:
    """Return ``app.current_worker_task``, the task in which something is published; in less time where none runs.

    A process that only publishes has nothing in any stack of tasks, and looking for this thread's takes long.
    """
    storage = getattr(getattr(_state._task_stack, "_local", None), "__storage__", True)
    return app.current_worker_task if storage else None


def autoretried_function(task: Any) -> Any:
    """Return the function that Celery wrapped for ``autoretry_for``; None when it wrapped none."""
    return getattr(task, "_orig_run", None)


def set_autoretried_function(task: Any, fun: Any) -> None:
    """Have Celery's wrapper call ``fun``."""
    task._orig_run = fun


def pydantic_cell(fun: Any) -> CellType | None:
    """Return what holds the function that Celery wrapped for ``pydantic=True``; None when it wrapped none."""
    plain = getattr(fun, "__func__", fun)
    code = getattr(plain, "__code__", None)
    if code is None or not {"task_fun", "dump_kwargs"} <= set(code.co_freevars):
        return None
    cell: CellType = plain.__closure__[code.co_freevars.index("task_fun")]
    return cell


def remember_custom_headers() -> None:
    """Have ``Context`` remember which headers Celery drops from a task's custom headers; it asks for each task anew.

    What Celery itself says decides: a message whose headers it was not asked about yet, or with a custom one, goes
    through its own function.
    """
    plain: Any = getattr(Context, "_get_custom_headers", None)
    if plain is None or hasattr(plain, "dropped"):
        return
    dropped: set[str] = set()

    def get_custom_headers(self: Context, *args: Any, **kwargs: Any) -> Any:
        headers = args[0] if len(args) == 1 else None
        if type(headers) is not dict:
            return plain(self, *args, **kwargs)
        if dropped.issuperset(headers) and dropped.issuperset(kwargs):
            return None
        custom = plain(self, *args, **kwargs)
        dropped.update(name for name in (*headers, *kwargs) if name not in (custom or ()))
        return custom

    get_custom_headers.plain, get_custom_headers.dropped = plain, dropped  # type: ignore[attr-defined]
    Context._get_custom_headers = get_custom_headers


def exchange_task_stack(new: Any) -> None:
    """Put ``new`` in the place of the stack behind ``current_task``, wherever Celery's modules refer to it."""
    old = _state._task_stack
    if old is new:
        return
    _state.push_current_task, _state.pop_current_task = new.push, new.pop
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("celery.") and getattr(module, "_task_stack", None) is old:
            module._task_stack = new  # type: ignore[attr-defined]


# -- requests (celery.worker.request)


def context_of(request: Any) -> Any:
    """Return the task's context (``self.request``) of a Request."""
    return request._context


def was_revoked(request: Any) -> bool:
    """Return whether a Request has announced that it was revoked."""
    return bool(request._already_revoked)


def was_cancelled(request: Any) -> bool:
    """Return whether a Request was cancelled (a cold shutdown)."""
    return bool(request._already_cancelled)


def success_was_stored(request: Any) -> Any:
    """Return the stored result of a task whose process was lost after it had succeeded; None before Celery 5.7."""
    stored = getattr(request, "_success_was_stored", None)
    return stored() if stored is not None else None


def registered_tasks(app: Any) -> dict[str, Any]:
    """Return the tasks of ``app`` that are known by now, without finalizing the app."""
    return dict(app._tasks)


def registered_task(app: Any, name: Any) -> Any:
    """Return a task of ``app`` as far as it is known by now, without finalizing the app; None when there is none."""
    return app._tasks.get(name)


def on_new_tasks(app: Any, change: Callable[[Any], None]) -> None:
    """Call ``change`` with each task that ``app`` makes or is given from now on, before anybody else has it.

    Tasks that were declared before and are made at their first use are among them.
    """

    def changing(make: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            task = make(*args, **kwargs)
            change(task)
            return task

        return made

    for name in ("_task_from_fun", "register_task"):
        setattr(app, name, changing(getattr(app, name)))
    for declared in list(app._pending):
        if isinstance(declared, PromiseProxy):
            declared.__then__(lambda task=declared: change(task))


def error_of_retry() -> BaseException | None:
    """Return what the ``Task.retry(exc=...)`` below us was told that the task failed with; None where it was not told.

    Celery keeps it to itself until the retry is published: it stands in the call alone.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is Task.retry.__code__:
            exc = frame.f_locals.get("exc")
            return exc if isinstance(exc, BaseException) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def change_backends(app: Any, change: Callable[[Any], None]) -> None:
    """Call ``change`` with each result backend that ``app`` makes; one that it has made before stays as it is."""
    make = app._get_backend

    def made() -> Any:
        backend = make()
        change(backend)
        return backend

    app._get_backend = made


def choose_backends(app: Any, choose: Callable[[str], Any]) -> None:
    """Have ``app`` make its result backend of the class that ``choose`` returns for its URL; None is Celery's choice.

    Once for each app.

    Celery knows a class by the part of the scheme before the ``+``, and takes ``redis+cluster`` for ``redis``.
    """
    if app.__dict__.get("_celery_streams_chooses"):
        return
    make = app._get_backend

    def made() -> Any:
        url = app.backend_cls or app.conf.result_backend
        chosen = choose(url) if isinstance(url, str) else None
        return make() if chosen is None else chosen(app=app, url=url)

    app._celery_streams_chooses = True
    app._get_backend = made


# -- connections (kombu.connection)


def take_broker_urls(transports: Mapping[str, str], split: Callable[[str], tuple[str, str | None, str | None]]) -> None:
    """Have kombu's connections of this process take the URLs of these schemes as they are, for these transports.

    kombu knows a transport by the part of the scheme before the ``+``, takes ``redis+cluster`` for ``redis``, with no
    host, and what stands behind a ``;`` for another broker.

    Args:
        transports: the path of a transport's class, by scheme.
        split: takes user and password out of a URL, so that nobody is shown them who asks where a worker is connected.
    """
    TRANSPORT_ALIASES.update(transports)
    plain: Any = Connection.__init__
    if hasattr(plain, "taken"):
        return

    @wraps(plain)
    def init(self: Any, hostname: Any = "localhost", *args: Any, **kwargs: Any) -> None:
        url = hostname if isinstance(hostname, str) or not hostname else ";".join(map(str, hostname))
        scheme = str(url).partition("://")[0].lower()
        if scheme not in init.taken:  # type: ignore[attr-defined]
            plain(self, hostname, *args, **kwargs)
            return
        plain(self, None, *args, **kwargs)
        self.transport_cls = scheme
        self.hostname, user, password = split(url)
        self.userid, self.password = user or self.userid, password or self.password

    init.taken = frozenset(transports)  # type: ignore[attr-defined]
    Connection.__init__ = init  # type: ignore[method-assign]


# -- messages, results, processes (kombu, celery.backends, billiard)


def pools_of(channel: Any) -> list[Any]:
    """Return the connection pools that a channel of kombu's Redis transport has made by now."""
    made = (vars(channel).get(name) for name in ("_pool", "_async_pool"))
    return [pool for pool in made if pool is not None]


def connections_of(pool: Any) -> list[Any]:
    """Return the connections that a pool of redis-py has made, in use or not."""
    found = [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]
    return [connection for connection in found if connection is not None]


def waits_for_messages(channel: Any) -> bool:
    """Return whether a channel of kombu's Redis transport waits for messages of a list, or is to."""
    return bool(channel.active_queues or channel._in_poll)


def stop_polling(channel: Any, connection: Any) -> None:
    """Have kombu's Redis transport wait no longer for a connection of ``channel``, which is about to be closed.

    Where it polls with ``select`` (gevent, eventlet) it knows the number of a descriptor, which the next socket gets.
    """
    channel._on_connection_disconnect(connection)


def decodes_json(content_type: Any) -> bool:
    """Return whether kombu decodes this content type with its own JSON, and nobody registered anything else for it."""
    return serialization.registry._decoders.get(content_type) is json.loads


def raise_decoding_error(message: Any) -> None:
    """Raise the error that a kombu Message met when it was made, for one that has errors."""
    message._reraise_error()


def makes_tasks_later(group: Any) -> bool:
    """Return whether a generator has still to make tasks of a group (celery.utils.functional.regen)."""
    return not getattr(group.tasks, "_regen__done", True)


def chord_claims_are_known(backend: Any) -> bool:
    """Return whether a result backend lets one process claim the dispatch of a chord's body (Redis, Celery 5.7)."""
    return hasattr(backend, "_chord_claim_extend_script")


def is_ending() -> bool:
    """Return whether billiard's handler of SIGTERM has run in this process (``terminate_handler_fired`` from 4.3.1)."""
    return bool(common._should_have_exited[0])


# -- command line (celery.bin.celery)


def import_program_alone() -> None:
    """Import Celery's program without what no process of ours needs before it is asked for.

    Celery imports commands that other packages give it, which ours does not offer, and prompt_toolkit for its
    ``amqp repl``, while it defines its program. Flower alone takes as long as all else that a worker imports. Celery
    takes a function each out of ``click_plugins`` and ``click_repl`` when it is imported; no setting changes that.
    """
    given, name = click_plugins.with_plugins, "click_repl"
    imported = sys.modules.get(name)
    stand_in = ModuleType(name)
    stand_in.register_repl = _register_repl  # type: ignore[attr-defined]
    click_plugins.with_plugins = lambda entry_points: lambda group: group
    try:
        if imported is None:
            sys.modules[name] = stand_in
        importlib.import_module("celery.bin.celery")
    finally:
        click_plugins.with_plugins = given
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _register_repl(group: click.Group, name: str = "repl") -> None:
    """Give ``group`` a shell of its commands, as click_repl does, which is imported when somebody begins it."""

    @group.command(name=name)
    @click.pass_context
    def repl(ctx: click.Context) -> None:
        """Start an interactive shell. All subcommands are available in it."""
        importlib.import_module("click_repl").repl(ctx)
