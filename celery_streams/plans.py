"""Plans: how a plain ``.delay()`` of a task is published without asking Celery everything anew.

Most of what Celery does for a publish has the same outcome each time: options, routes, the exchange, most headers. The
first publish of a task with certain options goes Celery's own way, and what arrives at the stream is written down as a
*plan*; later ones fill in the ids, the arguments and the origin. A plan is taken only when, for the message that it was
made of, it gives the same bytes. It holds as long as nothing that it depends on has changed, and no other code is
concerned: receivers of the publish signals, tracing libraries that replace ``Celery.send_task`` or kombu's
``Producer.publish``, a user's AMQP class, router or sender, routes that are functions. Then, and for any option that
is not plain (eta, expires, links, stamps, an own producer ...), everything goes Celery's way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from json import encoder as json_encoder
from json.encoder import encode_basestring_ascii
from types import FunctionType
from typing import Any, NamedTuple
from weakref import ref

from celery.app.routes import MapRoute, Router
from celery.signals import after_task_publish, before_task_publish, task_sent
from celery.utils.nodenames import anon_nodename
from celery.utils.saferepr import saferepr
from kombu.utils.functional import retry_over_time
from kombu.utils.json import JSONEncoder

from . import celery_private
from .app import Streams
from .block_store import QueuedMessage
from .blocks import Held
from .duplicates import result_of_first
from .exceptions import BrokerError, BrokerUnavailable, DuplicateTask
from .limits import KEYS_HEADER
from .locks import HEADER
from .message import Message, encode
from .partitions import queue_of

__all__ = ("Recorded", "plain_repr", "publish_by_plans", "recording")

#: Plans that are kept, in a project whose options are made of its data.
_MOST = 1_000

#: Options that a plan may be made for; their values are part of what it is known by.
_PLAIN = frozenset(
    (
        *("queue", "routing_key", "exchange", "priority", "expires", "serializer", "delivery_mode", "compression"),
        *("time_limit", "soft_time_limit", "immediate", "mandatory", "ignore_result"),
    )
)
_PLAIN_TYPES = frozenset((type(None), str, int, float, bool))

#: The third part of a body, as JSON.
_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'


def _json_encoder() -> Callable[[Any], str]:
    """Return what encodes as ``kombu.utils.json.dumps`` does, without making two encoders for each message.

    It looks for no circles, so that threads may share it: one is met by RecursionError.
    """
    encoder = JSONEncoder()
    make = getattr(json_encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    separators = encoder.key_separator, encoder.item_separator
    pieces = make(None, encoder.default, encode_basestring_ascii, None, *separators, False, False, True)
    join = "".join
    return lambda value: join(pieces(value, 0))


_encode = _json_encoder()

#: The digit of a UUID that says which variant it is, for one that says anything.
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def _new_id() -> str:
    """Return a random UUID as kombu's ``uuid`` does, in a third of the time."""
    digits = os.urandom(16).hex()
    variant = _VARIANT[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


_HOLES = {name: f"@@{name}@@" for name in ("id", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin")}
_VARYING = "".join(f',"{name}":"@@{name}@@"' for name in ("root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"))


class Recorded(NamedTuple):
    """What a publish that went Celery's way gave to the stream."""

    queue: str
    body: Any
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    retry: bool
    policy: Mapping[str, Any]


#: Where the publish that is under way in this context writes down what arrives at the streams.
recording: ContextVar[list[Recorded] | None] = ContextVar("celery_streams_recording", default=None)


def plain_repr(value: Any, most: int) -> str | None:
    """Return what Celery's ``saferepr`` returns for arguments that are texts, numbers and the like; else None."""
    if type(value) is dict:
        parts = []
        for key, one in value.items():
            shown, shown_key = _shown(one), _shown(key)
            if shown is None or shown_key is None or type(key) is not str:
                return None
            parts.append(f"{shown_key}: {shown}")
        text = f"{{{', '.join(parts)}}}"
    elif type(value) in (tuple, list):
        parts = []
        for one in value:
            shown = _shown(one)
            if shown is None:
                return None
            parts.append(shown)
        text = ", ".join(parts)
        if type(value) is list:
            text = f"[{text}]"
        else:
            text = f"({text},)" if len(parts) == 1 else f"({text})"
    else:
        return None
    return text if len(text) < most else None


def _shown(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return "'{}'".format(value.replace("'", "\\'"))
    return str(value) if kind in (int, bool, float) else "None" if value is None else None


@dataclass(slots=True)
class _Plan:
    """How the messages of one task with certain options look."""

    queue: str
    step: int
    compact: bool
    #: The headers: up to the id, behind it, and behind the origin; and the properties behind ``reply_to``.
    head: str
    middle: str
    tail: str
    rest: str
    ignore_result: Any
    retry: bool
    policy: Mapping[str, Any]
    #: Over how many partitions the messages of the queue are spread, which a message's id or arguments decide.
    count: int | None

    def message(
        self,
        task_id: str,
        root_id: str,
        parent_id: str | None,
        argsrepr: str,
        kwargsrepr: str,
        origin: str,
        reply_to: str,
        body: str,
    ) -> Message:
        """Return a message, as Celery, kombu and ``message.encode`` make it."""
        text = encode_basestring_ascii
        shown_id = text(task_id)
        if self.compact:
            root = "" if root_id == task_id else f',"root_id":{text(root_id)}'
            parent = "" if parent_id is None else f',"parent_id":{text(parent_id)}'
            args = "" if argsrepr == "()" else f',"argsrepr":{text(argsrepr)}'
            kwargs = "" if kwargsrepr == "{}" else f',"kwargsrepr":{text(kwargsrepr)}'
            properties = '{"compact":1'
        else:
            root = f',"root_id":{text(root_id)}'
            parent = f',"parent_id":{"null" if parent_id is None else text(parent_id)}'
            args = f',"argsrepr":{text(argsrepr)}'
            kwargs = f',"kwargsrepr":{text(kwargsrepr)}'
            properties = f'{{"correlation_id":{shown_id}'
        headers = f'{self.head}{shown_id}{self.middle}{root}{parent}{args}{kwargs},"origin":{text(origin)}{self.tail}'
        properties = f'{properties},"reply_to":{text(reply_to)}{self.rest}'
        return Message(headers.encode(), properties.encode(), body.encode(), b"", self.step)


class _World:
    """What plans depend on besides the options, as it was when they were made."""

    def __init__(self, app: Any, streams: Streams) -> None:
        conf, amqp = app.conf, app.amqp
        self.conf, self.amqp = conf, amqp
        self.changes = dict(conf.maps[0])
        self.maps = list(conf.maps)
        #: Configuration objects (modules, Django's settings) and dictionaries, with what they said.
        self.sources = [(_names(one), dict(_names(one))) for one in conf.maps[1:-1]]
        self.defaults = len(conf.maps[-1])
        self.streams_conf = streams.conf
        self.switch = streams.plain_switch()
        self.environ = os.environ.get("CELERY_STREAMS_ENABLED")
        self.amqp_parts = (amqp.router, amqp.create_task_message, amqp.send_task_message, amqp.queues)
        self.publish = amqp.Producer.publish
        self.routes = list(amqp.router.routes or ())
        self.queues = len(amqp.queues)
        self.code = celery_private.publish_code(app)
        self.backend = app.backend
        # A setting since Celery 5.7, whose default is what saferepr had before.
        self.sizes = (amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize, conf.get("task_repr_maxlevels", 3))
        self.pid = os.getpid()
        self.origin = anon_nodename()
        self.fit = self._is_plain(app)

    def holds(self, app: Any, streams: Streams) -> bool:
        """Return whether nothing has changed."""
        # Instance dictionaries, not attributes: the latter are properties in Python, and this runs for each publish.
        conf, amqp = app.conf, app.__dict__.get("amqp")
        if amqp is not self.amqp:
            return False
        known = amqp.__dict__
        router = known.get("router")
        maps = conf.maps
        return (
            conf is self.conf
            and maps == self.maps
            and maps[0] == self.changes
            and all(now == then for now, then in self.sources)
            and len(maps[-1]) == self.defaults
            and streams.conf is self.streams_conf
            and (router, known.get("create_task_message"), known.get("send_task_message"), known.get("queues"))
            == self.amqp_parts
            and len(self.amqp_parts[3]) == self.queues
            and known["_streams_producer"].publish is self.publish
            and (amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize) == self.sizes[:2]
            and list(router.routes or ()) == self.routes
            and celery_private.publish_code(app) == self.code
            and os.getpid() == self.pid
            and os.environ.get("CELERY_STREAMS_ENABLED") == self.environ
        )

    def _is_plain(self, app: Any) -> bool:
        """Return whether all that takes part in a publish is Celery's, kombu's and ours."""
        conf, amqp = self.conf, self.amqp
        router, create_message, _, _ = self.amqp_parts
        return (
            self.switch is True
            and conf.task_protocol == 2
            and not conf.task_send_sent_event
            and not conf.task_inherit_parent_priority
            and not conf.task_always_eager
            and type(router) is Router
            and all(type(route) is MapRoute for route in self.routes)
            and create_message == amqp.as_task_v2
            and amqp.is_plain()
            and _is_of(self.publish, "celery_streams.amqp")
            and "as_task_v2" not in amqp.__dict__
            and all(_is_of(function, *_HOMES) for function in self.code)
            and _is_of(type(self.backend).on_task_call, "celery.backends.base", "celery.backends.redis")
            and isinstance(self.sizes[2], int)
            and self.sizes[2] >= 0
        )


#: The modules of what a publish calls one after another, when nobody has replaced it.
_HOMES = ("celery.app.base", "celery.app.amqp", "kombu.messaging")


def _is_of(function: Any, *homes: str) -> bool:
    """Return whether a function was written in one of these modules: what wraps it was not."""
    return (
        isinstance(function, FunctionType)
        and not hasattr(function, "__wrapped__")
        and function.__globals__.get("__name__") in homes
    )


def _names(source: Any) -> Any:
    """Return the names and values of a part of the configuration, as a live dictionary."""
    return source if isinstance(source, dict) else vars(getattr(source, "obj", source))


def _listen(backend: Any, result: ref[Any], task_id: str) -> None:
    if result() is not None:
        backend.on_task_call(None, task_id)


class _Planner:
    """The ``send_task`` of one app."""

    def __init__(self, app: Any, streams: Streams) -> None:
        self._app, self._streams = app, streams
        self._plans: dict[Any, _Plan | None] = {}
        self._world: _World | None = None

    def send_task(self, name: Any, args: Any = None, kwargs: Any = None, *rest: Any, **given: Any) -> Any:
        """Publish a task as ``Celery.send_task`` does."""
        app = self._app
        key = None if rest else self._key(name, args, kwargs, given)
        if key is None or before_task_publish.receivers or after_task_publish.receivers or task_sent.receivers:
            return type(app).send_task(app, name, args, kwargs, *rest, **given)
        world = self._world
        if world is None or not world.holds(app, self._streams):
            self._plans.clear()
            world = self._world = _World(app, self._streams)
        if key in self._plans:
            plan = self._plans[key]
            if plan is not None:
                body, parent = self._body(args or (), kwargs or {}), celery_private.worker_task(app)
                if body is not None:
                    return self._publish(plan, world, body, parent, name, args or (), kwargs or {}, given)
            return type(app).send_task(app, name, args, kwargs, **given)
        return self._make(key, world, name, args, kwargs, given)

    @staticmethod
    def _key(name: Any, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
        """Return by what a plan is known; None when there is something for which none is made."""
        options = given.copy()
        task_type = options.pop("task_type", None)
        task_id = options.pop("task_id", None)
        if task_type is None or not (task_id is None or (type(task_id) is str and task_id)):
            return None
        for other in ("producer", "link", "link_error", "shadow"):
            if options.pop(other, None):
                return None
        options.pop("result_cls", None)
        if not (options.keys() <= _PLAIN) or options.get("expires") is not None or options.get("compression"):
            return None
        values = tuple(options.values())
        kinds = tuple(map(type, values))
        if not _PLAIN_TYPES.issuperset(kinds) or type(name) is not str:
            return None
        if not (args is None or type(args) in (tuple, list)) or not (kwargs is None or type(kwargs) is dict):
            return None
        return name, tuple(options), values, kinds

    @staticmethod
    def _body(args: Any, kwargs: Any) -> str | None:
        if not celery_private.encodes_json():
            return None
        try:
            return f"[{_encode(args)}, {_encode(kwargs) if kwargs else '{}'}, {_EMBED}]"
        except Exception:  # noqa: BLE001  (whatever it is, Celery's way raises it, as Celery does)
            return None

    def _publish(
        self,
        plan: _Plan,
        world: _World,
        body: str,
        parent: Any,
        name: str,
        args: Any,
        kwargs: Any,
        given: dict[str, Any],
    ) -> Any:
        app, streams = self._app, self._streams
        if not plan.ignore_result and app.backend is not world.backend:
            return type(app).send_task(app, name, args, kwargs, **given)
        task_id = given.get("task_id") or _new_id()
        root_id, parent_id = task_id, None
        if parent is not None:
            root_id, parent_id = parent.request.root_id or parent.request.id, parent.request.id
            if type(root_id) is not str or type(parent_id) is not str:
                return type(app).send_task(app, name, args, kwargs, **given)
        args_size, kwargs_size, levels = world.sizes
        argsrepr = plain_repr(args, args_size) or saferepr(args, args_size, maxlevels=levels)
        kwargsrepr = plain_repr(kwargs, kwargs_size) or saferepr(kwargs, kwargs_size, maxlevels=levels)
        queue = plan.queue
        if plan.count is not None:
            queue = streams.marks.place_of(queue, plan.count, name, task_id, args, kwargs, streams.conf)
        message = plan.message(task_id, root_id, parent_id, argsrepr, kwargsrepr, world.origin, app.thread_oid, body)
        holder = streams.holder()
        if holder is None:
            if not plan.ignore_result:
                world.backend.on_task_call(None, task_id)
            self._store(queue, plan, message)
        result = celery_private.new_result(app, given.get("result_cls"), task_id)
        result.ignored = plan.ignore_result
        if holder is not None:
            # Most results of a block are dropped at once: to listen for each, and to stop it, is two commands.
            listen = None if plan.ignore_result else partial(_listen, world.backend, ref(result), task_id)
            holder.hold(Held(queue, QueuedMessage(task_id, message, 0, ""), listen=listen))
            holder.call_ended()
        if parent is not None:
            parent.add_trail(result)
        return result

    def _store(self, queue: str, plan: _Plan, message: Message) -> None:
        broker, bound = self._streams.broker, self._streams.conf.max_length_of(queue)
        try:
            broker.publish(queue, message, max_length=bound)
            return
        except BrokerError as exc:
            error = exc.of_publish(plan.queue)
            if not plan.retry or not isinstance(exc, BrokerUnavailable):
                raise error from exc
            error.__cause__ = exc
            first: list[BaseException] = [error]

        def again() -> None:
            if first:
                raise first.pop()  # that was the first attempt
            try:
                broker.publish(queue, message, max_length=bound)
            except BrokerError as exc:
                raise exc.of_publish(plan.queue) from exc

        policy = plan.policy
        retry_over_time(
            again,
            (BrokerUnavailable, *(policy.get("retry_errors") or ())),
            max_retries=policy.get("max_retries", 3),
            interval_start=policy.get("interval_start", 0),
            interval_step=policy.get("interval_step", 0.2),
            interval_max=policy.get("interval_max", 1),
        )

    # -- making a plan

    def _make(self, key: Any, world: _World, name: str, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
        app = self._app
        if not world.fit:
            return type(app).send_task(app, name, args, kwargs, **given)
        recorded: list[Recorded] = []
        token = recording.set(recorded)
        try:
            result = type(app).send_task(app, name, args, kwargs, **given)
        finally:
            recording.reset(token)
        if len(self._plans) >= _MOST:
            self._plans.clear()
        self._plans[key] = self._plan(recorded[0], args or (), kwargs or {}) if len(recorded) == 1 else None
        # A queue that nobody named is known to Celery from now on; that changes nothing for other plans.
        world.queues = len(app.amqp.queues)
        return result

    def _plan(self, recorded: Recorded, args: Any, kwargs: Any) -> _Plan | None:
        """Return a plan, if it gives the bytes of the message that it is made of."""
        queue, headers, properties = queue_of(recorded.queue), recorded.headers, recorded.properties
        conf = self._streams.conf
        if KEYS_HEADER in headers or HEADER in headers:
            return None  # they depend on the arguments
        if conf.queues.share(queue) < 1.0 or type(recorded.body) is not str or not set(_HOLES) <= set(headers):
            return None
        compact = conf.compact_messages
        step = conf.queue_keys(queue).step_index(properties.get("priority"))
        made = encode(headers, properties, recorded.body, step=step, compact=compact)
        sample = encode(
            {**headers, **_HOLES},
            {**properties, "correlation_id": "@@id@@", "reply_to": "@@reply_to@@"},
            "",
            step=step,
            compact=compact,
        )
        head, _, others = sample.headers.decode().partition('"@@id@@"')
        middle, varying, tail = others.partition(_VARYING)
        begun, reply, rest = sample.properties.decode().partition(',"reply_to":"@@reply_to@@"')
        if not varying or not reply or begun != ('{"compact":1' if compact else '{"correlation_id":"@@id@@"'):
            return None
        plan = _Plan(
            *(queue, step, compact, head, middle, tail, rest, headers["ignore_result"]),
            *(recorded.retry, recorded.policy, conf.partitions.get(queue)),
        )
        said = {name: headers[name] for name in _HOLES}
        if any(type(one) is not str for name, one in said.items() if name != "parent_id"):
            return None
        body, reply_to = self._body(args, kwargs), properties.get("reply_to")
        if body is None or type(reply_to) is not str or type(said["parent_id"]) not in (str, type(None)):
            return None
        return plan if plan.message(said.pop("id"), **said, reply_to=reply_to, body=body) == made else None


def publish_by_plans(app: Any, streams: Streams) -> None:
    """Have ``app.send_task`` publish by plans where it can; again does no harm."""
    if hasattr(app.__dict__.get("send_task"), "planner"):
        return
    planner = _Planner(app, streams)
    plain: Callable[..., Any] = app.send_task

    @wraps(plain)
    def send_task(*args: Any, **kwargs: Any) -> Any:
        name = args[0] if args else kwargs.get("name")
        try:
            result = planner.send_task(*args, **kwargs) if args else type(app).send_task(app, **kwargs)
        except DuplicateTask as exc:
            if exc.in_group or (streams.raises_on_duplicate(name) and not exc.replaced):
                raise
            return result_of_first(app, exc, kwargs)
        if streams.marks.knows_unique:
            streams.await_fate(name, result)
        return result

    send_task.planner = planner  # type: ignore[attr-defined]
    app.send_task = send_task
