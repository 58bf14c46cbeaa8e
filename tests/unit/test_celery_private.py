"""Each private name of Celery, kombu and billiard that is used: what an upgrade that takes it away would break."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click_plugins  # type: ignore[import-untyped]
import click_repl
import pytest
from billiard import common
from celery import Celery, _state, current_app, group
from celery.app.amqp import Queues
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.base import pydantic_wrapper
from celery.app.task import Context
from celery.app.trace import TraceInfo
from celery.bin import amqp as celery_amqp
from celery.bin import celery as celery_program
from celery.canvas import Signature
from celery.exceptions import Retry
from celery.local import PromiseProxy
from celery.utils.threads import LocalStack
from celery.worker import request as worker_request
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization
from kombu.message import Message
from kombu.messaging import Producer
from kombu.transport import redis as redis_transport
from kombu.utils import json

import celery_streams
from celery_streams import celery_private

PACKAGES = [Path(celery_streams.__file__).parent, Path(celery_streams.__file__).parent.parent / "django_integration"]


def _task() -> Any:
    app = Celery("private", set_as_current=False)

    @app.task(autoretry_for=(ValueError,), shared=False, lazy=False)
    def work() -> None: ...

    return work


NAMES: dict[str, tuple[Any, str]] = {
    "celery._state._get_active_apps": (
        lambda: callable(_state._get_active_apps),
        "Django projects are put on streams by looking through all apps (celery_private.active_apps)",
    ),
    "celery._state._tls.current_app": (
        lambda: hasattr(_state._tls, "current_app"),
        "the project's app is found without making one (celery_private.preferred_apps)",
    ),
    "celery._state.default_app": (
        lambda: hasattr(_state, "default_app"),
        "commands use the app that is there (celery_private.default_app)",
    ),
    "celery._state._task_stack": (
        lambda: hasattr(_state._task_stack, "push"),
        "workers keep current_task for each context (celery_private.exchange_task_stack)",
    ),
    "celery._state._task_stack._local.__storage__": (
        lambda: LocalStack()._local.__storage__ is not None,  # this process's own may be ours
        "a process in which no task runs need not look for one at each publish (celery_private.worker_task)",
    ),
    "celery.app.task.Task._app, Task.__bound__ and Task._backend": (
        lambda: (_task()._app is not None, _task().__bound__, _task()._backend) == (True, True, None),
        "the result of a publish is made without asking for the app and its backend (celery_private.new_result)",
    ),
    "celery.app.base.Celery._get_backend": (
        lambda: callable(Celery._get_backend),
        "the result of a duplicate answers for the first message (celery_private.change_backends)",
    ),
    "celery._state.get_current_task": (
        lambda: callable(_state.get_current_task),
        "a process that a task forked must not store its result (worker.own_process)",
    ),
    "Proxy._get_current_object": (
        lambda: isinstance(current_app._get_current_object(), Celery),
        "install() without an app installs on the current one (celery_private.real_app)",
    ),
    "Celery._config_source": (
        lambda: hasattr(Celery("private", set_as_current=False), "_config_source"),
        "Django projects are known by where their app reads its settings (celery_private.config_source)",
    ),
    "AMQP._producer_pool": (
        lambda: hasattr(Celery("private", set_as_current=False).amqp, "_producer_pool"),
        "an app whose amqp was built before gets our producers (celery_private.forget_producer_pool)",
    ),
    "the closure of AMQP._create_task_sender": (
        lambda: (
            {"send_after_publish", "send_task_sent"}
            <= set(Celery("private", set_as_current=False).amqp.send_task_message.__code__.co_freevars)
        ),
        "after_task_publish is sent when a held message is stored (celery_private.replace_in_sender)",
    ),
    "Producer._batch_local": (
        lambda: not hasattr(Producer, "batch") or "_batch_local" in vars(Producer(None)),
        "Producer.batch holds stream messages (celery_private.publish_batch)",
    ),
    "what a publish calls": (
        lambda: all(celery_private.publish_code(Celery("private", set_as_current=False))),
        "plans are dropped when somebody replaces what publishes (celery_private.publish_code)",
    ),
    "serialization.registry._encoders": (
        lambda: serialization.registry._encoders["json"].encoder is json.dumps,
        "bodies are encoded as kombu encodes JSON only where kombu would (celery_private.encodes_json)",
    ),
    "Queues._consume_from": (
        lambda: hasattr(Queues({}), "_consume_from"),
        "-Q is told from no -Q (celery_private.consumes_from_chosen)",
    ),
    "Task._orig_run": (
        lambda: hasattr(_task(), "_orig_run") and callable(add_autoretry_behaviour),
        "async def tasks with autoretry_for run in every pool (celery_private.autoretried_function)",
    ),
    "the closure of pydantic_wrapper": (
        lambda: (
            {"task_fun", "dump_kwargs"}
            <= {
                name
                for code in pydantic_wrapper.__code__.co_consts
                if hasattr(code, "co_freevars")
                for name in code.co_freevars
            }
        ),
        "async def tasks with pydantic=True are awaited before they are dumped (celery_private.pydantic_cell)",
    ),
    "Celery._task_from_fun, Celery._pending and PromiseProxy.__then__": (
        lambda: (
            callable(Celery._task_from_fun)
            and hasattr(Celery("private", set_as_current=False), "_pending")
            and callable(PromiseProxy.__then__)
        ),
        "async def tasks are called as functions by .apply() and stock workers, too (celery_private.on_new_tasks)",
    ),
    "kombu.transport.redis.Channel._on_connection_disconnect": (
        lambda: callable(redis_transport.Channel._on_connection_disconnect),
        "a connection is closed that kombu polls for no more (celery_private.stop_polling)",
    ),
    "Request._context": (
        lambda: hasattr(worker_request.Request, "_context"),
        "a lost task's chord is counted (celery_private.context_of)",
    ),
    "Request._already_revoked, _already_cancelled": (
        lambda: {"_already_revoked", "_already_cancelled"} <= set(dir(worker_request.Request)),
        "a child's death is told from a termination (celery_private.was_revoked, was_cancelled)",
    ),
    "Message._reraise_error": (
        lambda: callable(Message._reraise_error),
        "a message that kombu cannot decode is told why (celery_private.raise_decoding_error)",
    ),
    "billiard.common._should_have_exited": (
        lambda: isinstance(common._should_have_exited, list),
        "an exit that the parent asked for is told from one of the task (celery_private.is_ending)",
    ),
    "Context._get_custom_headers": (
        lambda: callable(Context._get_custom_headers),
        "each task would find out its custom headers anew, for 4 us (celery_private.remember_custom_headers)",
    ),
    "serialization.registry._decoders": (
        lambda: serialization.registry._decoders["application/json"] is json.loads,
        "bodies are decoded as kombu decodes JSON only where kombu would (celery_private.decodes_json)",
    ),
    "TraceInfo.handle_error_state": (
        lambda: all(callable(getattr(TraceInfo, f"handle_{way}")) for way in ("error_state", "ignore", "reject")),
        "a process that a task forked ends where it leaves the task (worker.own_process)",
    ),
    "celery.bin.celery.with_plugins": (
        lambda: celery_program.with_plugins is click_plugins.with_plugins,
        "our program imports no other packages' commands (celery_private.import_program_alone)",
    ),
    "celery.bin.amqp.register_repl": (
        lambda: celery_amqp.register_repl is click_repl.register_repl and callable(click_repl.repl),
        "our program imports no shell that nobody asked for (celery_private.import_program_alone)",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_private_name_is_still_there(name: str) -> None:
    there, purpose = NAMES[name]

    try:
        found = there()
    except AttributeError:
        found = False

    assert found, f"This version has no {name}: {purpose}. Find what took its place."


#: Private names of others: a word with an underscore in front, of something that is not ours.
PRIVATE = re.compile(r"\b(_state|_tls|app|amqp|queues|request|message|common|current_app)\._[a-z]\w+")


def test_no_other_module_uses_private_names_of_celery() -> None:
    used = [
        f"{path.name}: {match[0]}"
        for package in PACKAGES
        for path in package.rglob("*.py")
        if path.name != "celery_private.py"
        for match in PRIVATE.finditer(path.read_text())
    ]

    assert used == []


def test_functions_answer_for_a_real_app() -> None:
    app = Celery("private", set_as_current=False)
    app.config_from_object({"task_default_queue": "q"})

    assert app in celery_private.active_apps()
    assert celery_private.config_source(app) == {"task_default_queue": "q"}
    assert celery_private.autoretried_function(_task()) is not None
    assert not celery_private.is_ending()


_NAMES = st.sampled_from(
    ["id", "task", "lang", "headers", "argsrepr", "timelimit", "stamps", "compression", "mine", "x", "update", "args"]
)


@given(requests=st.lists(st.tuples(st.dictionaries(_NAMES, st.integers()), st.dictionaries(_NAMES, st.integers()))))
def test_custom_headers_are_those_that_celery_finds(requests: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    plain: Any = getattr(Context._get_custom_headers, "plain", Context._get_custom_headers)
    expected = [plain(Context(), dict(headers), **others) for headers, others in requests]

    celery_private.remember_custom_headers()

    found = [Context()._get_custom_headers(dict(headers), **others) for headers, others in requests]
    assert found == expected
    assert [list(one or ()) for one in found] == [list(one or ()) for one in expected]


def test_custom_headers_are_found_in_whatever_a_context_is_made_of() -> None:
    celery_private.remember_custom_headers()

    assert Context().headers is None
    assert Context([("id", "1"), ("mine", 2)]).headers == {"mine": 2}
    assert Context({"id": "1", "mine": 2}).headers == {"mine": 2}
    assert Context({"id": "1"}, args=()).headers is None


def test_json_that_somebody_else_decodes_is_left_to_them() -> None:
    kept = serialization.registry._decoders["application/json"]

    serialization.registry._decoders["application/json"] = lambda data: data
    try:
        assert not celery_private.decodes_json("application/json")
    finally:
        serialization.registry._decoders["application/json"] = kept

    assert celery_private.decodes_json("application/json")
    assert not celery_private.decodes_json("application/x-yaml")


def test_group_says_whether_a_generator_has_still_to_make_some_of_its_tasks() -> None:
    app = Celery("later", set_as_current=False)
    made = app.signature("t")

    later = group((made for _ in range(5)), app=app)

    assert celery_private.makes_tasks_later(later)
    assert len(list(later.tasks)) == 5
    assert not celery_private.makes_tasks_later(later)
    for known in ([], [made], [made, made], (made, made)):
        assert not celery_private.makes_tasks_later(group(known, app=app))


def test_retry_tells_what_its_task_failed_with_to_whoever_publishes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    work = _task()
    monkeypatch.setattr(
        Signature, "apply_async", lambda self, *args, **options: found.append(celery_private.error_of_retry())
    )
    failed = ValueError("no")
    work.push_request(called_directly=False, id="1", retries=0, args=(), kwargs={}, is_eager=False)

    for exc in (failed, "words", None):
        with pytest.raises(Retry):
            work.retry(exc=exc)

    assert found == [failed, None, None]
    assert celery_private.error_of_retry() is None
