"""``worker``: Celery's own command, with our consumer and pool in its official seams and a few options more."""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Iterable
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
from kombu.utils.url import maybe_sanitize_url

from .. import __version__
from ..app import Streams, streams_of
from ..concurrency import OWN_POOLS, pool_for
from ..exceptions import BrokerError, BrokerUnavailable, ConfigurationError, ServerIsReplica
from ..monitoring.names import misspelt_queues
from ..worker.option_values import misunderstood
from ..worker.patterns import is_pattern
from . import relaunch
from .base import require_installed
from .daemon_options import Address, Autoscale, ListenAt, Pool, check_daemon_options
from .queue_names import QueueWords, check_no_patterns, read_queue_words
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
    metrics: Address | None = options.pop("metrics_port")
    streams = streams_of(app)
    existing = functools.cache(lambda: _existing_queues(streams))
    words = read_queue_words(options.get("queues"), existing)
    # An empty name, of a variable that is not set, excludes nothing, as with Celery.
    excluded = [name.strip() for name in options.get("exclude_queues") or () if name.strip()]
    check_no_patterns("-X", excluded, existing)
    options["exclude_queues"] = excluded or None
    options["queues"] = list(words.names) or None
    streams.children, streams.literal_queues = words.counts, words.literal
    options["pool"] = pool_for(options["pool"])
    if words.counts:
        given = ctx.get_parameter_source("concurrency") is click.core.ParameterSource.COMMANDLINE
        _share_children(options, words.counts, given=given)
    _check_numbers(ctx, options)
    check_daemon_options(options)
    supervised = reload or processes > 1
    if not supervised:  # the workers of a supervisor are programs of their own, and check it for themselves
        _require_patched(options["pool"])
    if options.get("detach"):
        return _detach(ctx, options)
    if supervised:
        ctx.exit(_supervise(app, options, processes=processes, reload=reload, metrics=metrics))
    if metrics is not None:
        streams.metrics = _open_metrics(metrics)
    _check_backend(app)
    _first_contact(streams, patient=bool(app.conf.broker_connection_retry_on_startup))
    streams.odd_queues = _odd_queues(streams, words, excluded)
    # Celery leaves the option on its worker object (--disable-prefetch it does put here); pools and banner read this.
    app.conf.worker_prefetch_multiplier = options["prefetch_multiplier"]
    app.__dict__["Worker"] = app.subclass_with_self("celery_streams.worker.program:Worker", name="Worker")
    assert celery_worker.callback is not None
    try:
        return celery_worker.callback(**options)
    except ImproperlyConfigured as exc:
        raise ConfigurationError(" ".join(str(exc).split())) from exc
    except ModuleNotFoundError as exc:
        included = options.get("include") or ()
        missing = next((name for name in included if f"{name}.".startswith(f"{exc.name}.")), None)
        if missing is None:  # not what the option names: something that it imports
            raise
        raise click.UsageError(f"-I {missing}: there is no module {exc.name}") from exc


def _check_backend(app: Any) -> None:
    """Make the result backend, as Celery's banner does, where what is wrong ends in a stack trace.

    Raises:
        ConfigurationError: there is none of this name, or a package for it is missing.
    """
    try:
        app.backend.as_uri()
    except (ImportError, ImproperlyConfigured, ValueError) as exc:
        raise ConfigurationError(f"result_backend {maybe_sanitize_url(app.conf.result_backend)}: {exc}") from exc


#: Options that are numbers, and what they count: as in the worker's own check of the settings behind them.
_NUMBERS = {
    "time_limit": ("--time-limit", "seconds"),
    "soft_time_limit": ("--soft-time-limit", "seconds"),
    "max_tasks_per_child": ("--max-tasks-per-child", "count"),
    "max_memory_per_child": ("--max-memory-per-child", "amount"),
    "concurrency": ("-c", "count"),
    "prefetch_multiplier": ("--prefetch-multiplier", "amount"),
    "heartbeat_interval": ("--heartbeat-interval", "amount"),
}

#: What Celery 5.7 takes for as many children as there are processors.
_AUTO = "auto"


def _check_numbers(ctx: click.Context, options: dict[str, Any]) -> None:
    """Check the numbers that stand on the command line; what comes from settings the worker itself checks.

    Raises:
        click.UsageError: one of them means nothing.
    """
    given = {
        flag: (options[name], kind)
        for name, (flag, kind) in _NUMBERS.items()
        if options[name] not in (None, _AUTO)
        and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    for wrong in misunderstood(given, ()):
        raise click.UsageError(wrong)


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
            f"{pool.patched_by} has not patched the standard library, which must happen before any import: "
            f"start the worker with celery-streams -A proj worker -P {pool.patched_by}"
        )


def _existing_queues(streams: Streams) -> set[str]:
    """Return the names of the queues that are known; only those of the settings while Redis does not answer."""
    try:
        return {*streams.app.amqp.queues, *streams.known_queues()}
    except BrokerError:
        return {*streams.app.amqp.queues, *streams.named_queues()}  # the first contact says what is wrong


def _odd_queues(streams: Streams, words: QueueWords, excluded: Iterable[str]) -> dict[str, str]:
    """Return the names of ``-Q`` and ``-X`` that are most likely misspelt; none where Redis does not tell."""
    names = [name for name in words.names if name in words.literal or not is_pattern(name)]
    try:
        return misspelt_queues(streams, [*names, *excluded])
    except BrokerError:
        return {}  # whatever it refuses, the worker is told of when it needs it
    finally:
        streams.broker.client.close()


def _share_children(options: dict[str, Any], counts: dict[str, int], *, given: bool) -> None:
    """Set ``-c`` to the children that ``-Q name:count`` asks for, and one for each queue without a count.

    Raises:
        click.UsageError: there are no children, or ``-c`` or another option contradicts the counts.
    """
    if not options["pool"].__module__.endswith(".prefork"):
        raise click.UsageError("-Q name:count needs -P prefork: other pools have no children")
    if options.get("autoscale"):
        raise click.UsageError("-Q name:count fixes the number of children, and --autoscale changes it: use only one")
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
        raise click.UsageError(f"-Q asks for {asked + bool(others)} children, but -c allows only {allowed}")
    if allowed > asked and not others:
        raise click.UsageError(f"-Q asks for {asked} children, but -c starts {allowed}: use only one")


def _children(concurrency: Any) -> int:
    """Return how many children a ``-c`` means: one for each processor where it is ``auto``, 0 or nothing."""
    if not concurrency or str(concurrency).strip().lower() == "auto":
        return os.cpu_count() or 1
    return int(concurrency)


def _first_contact(streams: Any, *, patient: bool) -> None:
    """Ask Redis once, so that a wrong URL or password is one clear line and not a loop.

    Raises:
        BrokerError: Redis refuses, or stays unreachable (broker_connection_retry_on_startup = True waits for it).
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
                if isinstance(exc, ServerIsReplica):
                    raise
                raise BrokerUnavailable(f"{exc}. Is it running? Set streams_url or the broker URL.") from exc
            if patient and not told:
                click.echo(f"{exc}. Waiting for it (broker_connection_retry_on_startup).", err=True)
                told = True
            # A server that is unreachable can only be asked again.
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


def _open_metrics(address: Address) -> Any:
    """Listen where the metrics will be served.

    Raises:
        ConfigurationError: nobody can listen there, or the package is missing.
    """
    # Here, for it needs a package that nobody else needs.
    try:
        from ..worker.metrics import WorkerMetrics
        from ..worker.metrics_server import MetricsServer
    except ImportError as exc:
        raise ConfigurationError(
            "--metrics-port needs the package prometheus_client: pip install 'celery-streams[prometheus]'"
        ) from exc
    return WorkerMetrics(MetricsServer(address.host, address.port), version=__version__)


def _supervise(app: Any, options: dict[str, Any], *, processes: int, reload: bool, metrics: Address | None) -> int:
    """Run worker programs as children until they end; returns the exit code.

    Raises:
        click.UsageError: an option means nothing, or harm, in several workers.
    """
    if processes > 1:
        _check_processes(options)
    name, host = nodesplit(options["hostname"])
    commands, later = [], []
    command = relaunch.command_line(flags=("--reload",), valued=("--processes", "--pidfile", "--metrics-port"))
    without_purge = relaunch.without(command, flags=("--purge", "--discard"))
    for number in range(1, processes + 1):
        node = ["-n", nodename(f"{name}-{number}", host)] if processes > 1 else []
        if metrics is not None:
            # Each worker counts for itself. Of 0 each gets a port that is free.
            node += ["--metrics-port", str(metrics.plus(number - 1))]
        commands.append([*(command if number == 1 else without_purge), *node])
        later.append([*without_purge, *node])
    if options.get("pidfile"):
        create_pidlock(node_format(options["pidfile"], options["hostname"]))
    watcher = None
    if reload:
        app.loader.import_default_modules()
        watcher = Watcher(Path.cwd(), files=project_modules())
    environment = relaunch.environment("reload", "processes", "pidfile", "purge", "metrics_port")
    return Supervisor(commands, again=later, environment=environment, watcher=watcher).run()


def _check_processes(options: dict[str, Any]) -> None:
    if options["pool"].__module__.endswith(".prefork"):
        raise click.UsageError("--processes is for pools of one process; for more children of -P prefork use -c")
    if options.get("beat"):
        raise click.UsageError("--processes with -B would start several beats: run celery-streams beat separately")
    if options.get("statedb") and "%" not in options["statedb"]:
        raise click.UsageError("--processes needs a --statedb for each worker: put %n in its name")


worker: click.Command = copy.copy(celery_worker)
concurrency.ALIASES.update(OWN_POOLS)


#: Options of Celery's that mean less here.
_HELP = {
    "optimization": "No effect: each child takes its own next message, which is what fair means.",
    "prefetch_multiplier": "1 fetches one message at a time; other values have no effect.",
    "disable_prefetch": "Fetch one message at a time, like --prefetch-multiplier 1.",
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
        help="Start this many workers, each with a pool of size -c; for -P threads, gevent, eventlet, asyncio and "
        "solo. Their node names are %n-1@%h, %n-2@%h ...",
    ),
    CeleryOption(
        ["--metrics-port"],
        type=ListenAt(),
        metavar="[HOST:]PORT",
        help_group="Streams Options",
        help="Serve metrics of this worker for Prometheus, on 127.0.0.1 unless a host is given; 0 is any free port. "
        "With --processes the second worker takes the port above, and so on. Needs celery-streams[prometheus].",
    ),
    CeleryOption(
        ["--reload"],
        is_flag=True,
        default=False,
        help_group="Streams Options",
        help="For development: restart the worker when a .py file of the project or in the working directory changes.",
    ),
]
worker.callback = _run
worker.help = """Start a worker on Redis Streams. It takes the options of celery worker.

\b
-Q send_message:3,mark_as_read:2 starts three children for one queue and two for the other.
-Q 'chat.*' reads all matching queues, including those that appear while the worker runs.
-Q 'tenant\\:42,jobs\\[1\\]' escapes special characters; names of existing queues need no backslash.

\b
Examples
--------

\b
$ celery-streams -A proj worker -l INFO -Q send_message,mark_as_read -c 4
$ celery-streams -A proj worker -Q send_message:3,mark_as_read:2
$ celery-streams -A proj worker -P threads -c 20
$ celery-streams -A proj worker -P asyncio -c 200 --processes 2
$ celery-streams -A proj worker -l INFO --reload
$ celery-streams -A proj worker --metrics-port 9808
"""
