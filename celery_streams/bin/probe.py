"""Probe: runs ``celery-streams health`` without Celery's command line, whose plugins take up to a second to import.

Probes are run every few seconds, and must answer within one. What is wrong with the command line, or out of the
ordinary, is left to the whole command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
from celery.bin.base import CLIContext

from .app_name import load_app
from .base import hoist
from .health import health

__all__ = ("run_probe",)

#: Global options that a probe may have; with any other one the whole command line is loaded.
_GLOBAL = (
    click.Option(["-A", "--app"]),
    click.Option(["-b", "--broker"]),
    click.Option(["--workdir"]),
    click.Option(["-C", "--no-color"], is_flag=True),
    click.Option(["-q", "--quiet"], is_flag=True),
)


@click.group()
def _root() -> None:
    """Stand for the root group."""


_root.add_command(health)


def run_probe(words: Sequence[str]) -> None:
    """Run ``health`` and end the process, if that is what ``words`` ask for; else return."""
    options, rest = _split(hoist(words, _GLOBAL))
    app = options.get("-A", options.get("--app", os.environ.get("CELERY_APP")))
    if rest[:1] != ["health"] or not app or {"-h", "--help"} & set(rest):
        return
    workdir = options.get("--workdir")
    before = os.getcwd()
    try:
        os.chdir(workdir or before)
        if (broker := options.get("-b", options.get("--broker"))) is not None:
            os.environ["CELERY_BROKER_URL"] = broker
        sys.path.insert(0, os.getcwd())
        loaded = load_app(app)
    except (click.ClickException, OSError):
        os.chdir(before)
        return
    _root.main(rest, prog_name="celery-streams", obj=CLIContext(app=loaded, no_color=True, workdir=workdir))


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the global options in front, and what follows them."""
    rest = list(words)
    found: dict[str, str] = {}
    flags = {name for option in _GLOBAL if option.is_flag for name in option.opts}
    valued = {name for option in _GLOBAL if not option.is_flag for name in option.opts}
    while rest:
        name, equals, value = rest[0].partition("=")
        if name in flags:
            rest.pop(0)
        elif name in valued and name.startswith("--") and equals:
            found[name] = value
            rest.pop(0)
        elif rest[0] in valued and len(rest) > 1:
            found[rest[0]] = rest[1]
            del rest[:2]
        elif rest[0][:2] in valued and len(rest[0]) > 2 and not rest[0].startswith("--"):
            word = rest.pop(0)
            found[word[:2]] = word[2:]
        else:
            break
    return found, rest
