"""``worker``: Celery's own command, with our consumer and pool in its official seams and a few options more."""

from __future__ import annotations

import copy
import os
import sys
import time
from typing import Any

import click
from celery import concurrency
from celery.bin.worker import WorkersPool, detach
from celery.bin.worker import worker as celery_worker
from celery.exceptions import ImproperlyConfigured

from ..amqp import streams_of
from ..concurrency import OWN_POOLS, pool_for
from ..exceptions import BrokerUnavailable, ConfigurationError
from .base import require_installed

__all__ = ("worker",)

_STOCK_AUTOSCALER = "celery.worker.autoscale:Autoscaler"

#: Attempts and pause in seconds for the first contact with Redis, unless broker_connection_retry_on_startup is True.
_FIRST_CONTACT = (3, 0.5)


def parse_queues(names: list[str] | None) -> tuple[list[str] | None, dict[str, int]]:
    """Split ``name:count`` (children per queue) into the names and the counts."""
    counts: dict[str, int] = {}
    plain: list[str] = []
    for word in names or ():
        name, _, count = word.rpartition(":")
        if name and count.isdigit() and int(count):
            counts[name] = int(count)
            plain.append(name)
        else:
            plain.append(word)
    return (plain or None), counts


def _run(**options: Any) -> Any:
    ctx = click.get_current_context()
    app = ctx.obj.app
    require_installed(app)
    streams = streams_of(app)
    queues, counts = parse_queues(options.get("queues"))
    options["queues"] = queues
    streams.children = counts
    if counts and ctx.get_parameter_source("concurrency") is not click.core.ParameterSource.COMMANDLINE:
        shared = [name for name in queues or () if name not in counts]
        options["concurrency"] = sum(counts.values()) + len(shared)
    options["pool"] = pool_for(options["pool"])
    if options.get("detach"):
        return _detach(ctx, options)
    _first_contact(streams, patient=bool(app.conf.broker_connection_retry_on_startup))
    app.conf.worker_consumer = "celery_streams.worker.consumer:Consumer"
    if app.conf.worker_autoscaler == _STOCK_AUTOSCALER:
        app.conf.worker_autoscaler = "celery_streams.worker.autoscale:Autoscaler"
    app.__dict__["Worker"] = app.subclass_with_self("celery_streams.worker.program:Worker", name="Worker")
    assert celery_worker.callback is not None
    try:
        return celery_worker.callback(**options)
    except ImproperlyConfigured as exc:
        raise ConfigurationError(" ".join(str(exc).split())) from exc


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
            broker.client.call("PING")
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
            time.sleep(pause)


def _detach(ctx: click.Context, options: dict[str, Any]) -> Any:
    # The program that runs now: manage.py, a console script, or this package.
    program = ["-m", "celery_streams"] if sys.argv[0].endswith("__main__.py") else [os.path.abspath(sys.argv[0])]
    argv = [*program, *(word for word in sys.argv[1:] if word not in ("-D", "--detach"))]
    for name in ("--uid", "--gid"):
        while name in argv:
            at = argv.index(name)
            del argv[at : at + 2]
    return detach(
        sys.executable,
        argv,
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


worker: click.Command = copy.copy(celery_worker)
concurrency.ALIASES.update(OWN_POOLS)


def _our_param(param: click.Parameter) -> click.Parameter:
    if param.name == "pool":
        param = copy.copy(param)
        param.type = WorkersPool()
    return param


worker.params = [_our_param(param) for param in celery_worker.params]
worker.callback = _run
worker.help = """Start a worker on Redis Streams: the options are those of celery worker.

\b
-Q send_message:3,mark_as_read:2 starts three children for one queue and two for the other.

\b
Examples
--------

\b
$ celery-streams -A proj worker -l INFO -Q send_message,mark_as_read -c 4
$ celery-streams -A proj worker -Q send_message:3,mark_as_read:2
$ celery-streams -A proj worker -P threads -c 20
$ celery-streams -A proj worker -P asyncio -c 200
"""
