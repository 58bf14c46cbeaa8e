"""``worker``: Celery's own command, with our consumer and pool in its official seams and a few options more."""

from __future__ import annotations

import copy
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from celery import concurrency
from celery.bin.base import CeleryOption
from celery.bin.worker import detach
from celery.bin.worker import worker as celery_worker
from celery.exceptions import ImproperlyConfigured
from celery.platforms import create_pidlock
from celery.utils.nodenames import node_format, nodename, nodesplit
from kombu.utils.compat import detect_environment

from ..app import Streams, streams_of
from ..concurrency import OWN_POOLS, pool_for
from ..exceptions import BrokerError, BrokerUnavailable, ConfigurationError
from . import relaunch
from .base import require_installed
from .daemon_options import Autoscale, Pool, check_daemon_options
from .queue_names import read_queue_words
from .supervisor import Supervisor, Watcher, project_modules
from .terminal import EXIT_CONFIG, one_line_errors

if TYPE_CHECKING:
    from ..concurrency.base import StreamsPool

__all__ = ("worker",)

#: Attempts and pause in seconds for the first contact with Redis, unless broker_connection_retry_on_startup is True.
_FIRST_CONTACT = (3, 0.5)


@one_line_errors
def _run(**options: Any) -> Any:
    ctx = click.get_current_context()
    app = ctx.obj.app
    require_installed(app)
    processes, reload = options.pop("processes"), options.pop("reload")
    streams = streams_of(app)
    words = read_queue_words(options.get("queues"), functools.cache(lambda: _existing_queues(streams)))
    options["queues"] = list(words.names) or None
    streams.children, streams.literal_queues = words.counts, words.literal
    options["pool"] = pool_for(options["pool"])
    if words.counts:
        given = ctx.get_parameter_source("concurrency") is click.core.ParameterSource.COMMANDLINE
        _share_children(options, words.counts, given=given)
    check_daemon_options(options)
    supervised = reload or processes > 1
    if not supervised:  # the workers of a supervisor are programs of their own, and check it for themselves
        _require_patched(options["pool"])
    if options.get("detach"):
        return _detach(ctx, options)
    if supervised:
        ctx.exit(_supervise(app, options, processes=processes, reload=reload))
    _first_contact(streams, patient=bool(app.conf.broker_connection_retry_on_startup))
    # Celery leaves the option on its worker object (--disable-prefetch it does put here); pools and banner read this.
    app.conf.worker_prefetch_multiplier = options["prefetch_multiplier"]
    app.__dict__["Worker"] = app.subclass_with_self("celery_streams.worker.program:Worker", name="Worker")
    assert celery_worker.callback is not None
    try:
        return celery_worker.callback(**options)
    except ImproperlyConfigured as exc:
        raise ConfigurationError(" ".join(str(exc).split())) from exc


class _Unpatched(click.ClickException):
    """The pool's threads would not be green."""

    exit_code = EXIT_CONFIG


def _require_patched(pool: type[StreamsPool]) -> None:
    """Check that a pool of green threads does not get threads of the system, which work and are something else.

    Only ``celery-streams`` and ``celery`` patch the standard library in time, and only for a ``-P`` in their arguments.

    Raises:
        click.ClickException: it was not patched; a ConfigurationError would end ``celery streams`` with a traceback.
    """
    if pool.patched_by and detect_environment() != pool.patched_by:
        raise _Unpatched(
            f"{pool.patched_by} has not patched the standard library, which must come before everything else: "
            f"start the worker with celery-streams -A proj worker -P {pool.patched_by}"
        )


def _existing_queues(streams: Streams) -> set[str]:
    """Return the names of the queues that are known; only those of the settings while Redis does not answer."""
    try:
        return {*streams.app.amqp.queues, *streams.known_queues()}
    except BrokerError:
        return {*streams.app.amqp.queues, *streams.named_queues()}  # the first contact says what is wrong


def _share_children(options: dict[str, Any], counts: dict[str, int], *, given: bool) -> None:
    """Set ``-c`` to the children that ``-Q name:count`` asks for, and one for each queue without a count.

    Raises:
        click.UsageError: there are no children, or ``-c`` or another option contradicts the counts.
    """
    if not options["pool"].__module__.endswith(".prefork"):
        raise click.UsageError("-Q name:count gives children to queues, which only -P prefork has")
    if options.get("autoscale"):
        raise click.UsageError("-Q name:count fixes the number of children, and --autoscale changes it: leave one out")
    excluded = counts.keys() & set(options.get("exclude_queues") or ())
    if excluded:
        raise click.UsageError(f"-Q gives children to {', '.join(sorted(excluded))}, which -X excludes")
    others = sum(name not in counts for name in options["queues"])
    asked = sum(counts.values())
    if not given:
        options["concurrency"] = asked + others
        return
    allowed = _children(options["concurrency"])
    if allowed < asked + bool(others):
        raise click.UsageError(f"-Q asks for {asked + bool(others)} children, and -c allows {allowed}")
    if allowed > asked and not others:
        raise click.UsageError(f"-Q gives its queues {asked} children, and -c starts {allowed}: leave one out")


def _children(concurrency: Any) -> int:
    """Return how many children a ``-c`` means: one for each processor where it is ``auto``, 0 or nothing."""
    if not concurrency or str(concurrency).strip().lower() == "auto":
        return os.cpu_count() or 1
    return int(concurrency)


def _first_contact(streams: Any, *, patient: bool) -> None:
    """Ask Redis once, so that a wrong URL or password is one clear line and not a loop.

    Raises:
        BrokerError: Redis refuses, or stays away (with broker_connection_retry_on_startup = True it is waited for).
        ConfigurationError: a setting is wrong.
    """
    attempts, pause = _FIRST_CONTACT
    broker = streams.new_broker()
    told = False
    while True:
        try:
            broker.client.greet()
            broker.client.close()
            return
        except BrokerUnavailable as exc:
            attempts -= 1
            if attempts <= 0 and not patient:
                raise BrokerUnavailable(
                    f"{str(exc).rstrip('.')}. Is it running? Set streams_url or the broker URL."
                ) from exc
            if patient and not told:
                click.echo(f"{str(exc).rstrip('.')}. Waiting for it (broker_connection_retry_on_startup).", err=True)
                told = True
            # A server that is away can only be asked relaunch.
            time.sleep(pause)


def _detach(ctx: click.Context, options: dict[str, Any]) -> Any:
    command = relaunch.command_line(flags=("-D", "--detach"), valued=("--uid", "--gid"))
    return detach(
        command[0],
        command[1:],
        logfile=options.get("logfile"),
        pidfile=options.get("pidfile"),
        uid=options.get("uid"),
        gid=options.get("gid"),
        umask=options.get("umask"),
        workdir=options.get("workdir"),
        app=ctx.obj.app,
        executable=options.get("executable"),
        hostname=options.get("hostname"),
    )


def _supervise(app: Any, options: dict[str, Any], *, processes: int, reload: bool) -> int:
    """Run worker programs as children until they end; returns the exit code.

    Raises:
        click.UsageError: an option means nothing, or harm, in several workers.
    """
    if processes > 1:
        _check_processes(options)
    name, host = nodesplit(options["hostname"])
    commands, later = [], []
    command = relaunch.command_line(flags=("--reload",), valued=("--processes", "--pidfile"))
    without_purge = relaunch.without(command, flags=("--purge", "--discard"))
    for number in range(1, processes + 1):
        node = ["-n", nodename(f"{name}-{number}", host)] if processes > 1 else []
        commands.append([*(command if number == 1 else without_purge), *node])
        later.append([*without_purge, *node])
    if options.get("pidfile"):
        create_pidlock(node_format(options["pidfile"], options["hostname"]))
    watcher = None
    if reload:
        app.loader.import_default_modules()
        watcher = Watcher(Path.cwd(), files=project_modules())
    environment = relaunch.environment("reload", "processes", "pidfile", "purge")
    return Supervisor(commands, again=later, environment=environment, watcher=watcher).run()


def _check_processes(options: dict[str, Any]) -> None:
    if options["pool"].__module__.endswith(".prefork"):
        raise click.UsageError(
            "--processes multiplies the pools of one process; -P prefork has processes of its own: -c"
        )
    if options.get("beat"):
        raise click.UsageError("--processes with -B would start several beats: run celery-streams beat by itself")
    if options.get("statedb") and "%" not in options["statedb"]:
        raise click.UsageError("--processes needs a --statedb for each of them: put %n into its name")


worker: click.Command = copy.copy(celery_worker)
concurrency.ALIASES.update(OWN_POOLS)


#: Options of Celery's that mean less here.
_HELP = {
    "optimization": "Without effect: each child takes its own next message, which is what fair means.",
    "prefetch_multiplier": "1 fetches one message at a time; other values have no effect.",
    "disable_prefetch": "Fetch one message at a time, as --prefetch-multiplier 1.",
}


def _our_param(param: click.Parameter) -> click.Parameter:
    types = {"pool": Pool, "autoscale": Autoscale}
    if param.name not in types and param.name not in _HELP:
        return param
    param = copy.copy(param)
    if param.name in types:
        param.type = types[param.name]()
    if param.name in _HELP:
        assert isinstance(param, click.Option)
        param.help = _HELP[param.name]
    return param


worker.params = [
    *(_our_param(param) for param in celery_worker.params),
    CeleryOption(
        ["--processes"],
        type=click.IntRange(min=1),
        default=1,
        metavar="<processes>",
        help_group="Streams Options",
        help="Start so many workers, each with a pool of -c; for -P threads, gevent, eventlet, asyncio and solo. "
        "Their node names are %n-1@%h, %n-2@%h ...",
    ),
    CeleryOption(
        ["--reload"],
        is_flag=True,
        default=False,
        help_group="Streams Options",
        help="For development: start the worker again when a .py file of the project or of the working directory "
        "changes.",
    ),
]
worker.callback = _run
worker.help = """Start a worker on Redis Streams: the options are those of celery worker.

\b
-Q send_message:3,mark_as_read:2 starts three children for one queue and two for the other.
-Q 'chat.*' reads all queues that match, also those that come up while the worker runs.
-Q 'tenant\\:42,jobs\\[1\\]' names queues; those that exist need no backslash.

\b
Examples
--------

\b
$ celery-streams -A proj worker -l INFO -Q send_message,mark_as_read -c 4
$ celery-streams -A proj worker -Q send_message:3,mark_as_read:2
$ celery-streams -A proj worker -P threads -c 20
$ celery-streams -A proj worker -P asyncio -c 200 --processes 2
$ celery-streams -A proj worker -l INFO --reload
"""
