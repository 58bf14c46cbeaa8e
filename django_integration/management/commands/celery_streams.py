"""``python manage.py celery_streams ...``: the ``celery-streams`` command line, with the project's app for ``-A``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from celery import Celery
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from celery_streams.bin.root import main
from django_integration.project import project_app


class Command(BaseCommand):
    """Hand everything to ``celery_streams.bin``; no option is declared here."""

    help = "Run celery-streams with the project's Celery app: workers, status and dead letters of Redis Streams."
    requires_system_checks: tuple[str, ...] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run ``manage.py celery_streams ...``; ``--help`` is for celery-streams too."""
        main(_without_django_options(argv[2:]), prog_name=_program(argv[0], argv[1]), app=_app())

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Answer ``manage.py help celery_streams``."""
        main(["--help"], prog_name=_program(prog_name, subcommand), app=_app())

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take everything, for ``call_command``."""
        parser.add_argument("argv", nargs=argparse.REMAINDER)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run ``call_command("celery_streams", ...)``.

        Raises:
            CommandError: the exit code was not 0; it is the error's ``returncode``.
        """
        try:
            main(options["argv"], app=_app())
        except SystemExit as exc:
            if exc.code:
                number = exc.code if isinstance(exc.code, int) else 1
                raise CommandError(f"celery-streams ended with exit code {number}.", returncode=number) from exc


def _app() -> Celery | None:
    # Without one, celery-streams asks for -A, and --help works all the same.
    try:
        return project_app()
    except ImproperlyConfigured:
        return None


def _program(path: str, subcommand: str) -> str:
    name = os.path.basename(path)
    return f"{'python -m django' if name == '__main__.py' else name} {subcommand}"


def _without_django_options(argv: list[str]) -> list[str]:
    """Drop ``--settings`` and ``--pythonpath``, which Django has obeyed by now."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*kept, word, *words]
        if word in ("--settings", "--pythonpath"):
            next(words, None)
        elif not word.startswith(("--settings=", "--pythonpath=")):
            kept.append(word)
    return kept
