"""``celery-streams`` and ``python -m celery_streams``: the entry point, which imports nothing before it must."""

from __future__ import annotations

import sys

__all__ = ("main",)


def main() -> None:
    """Run the command line; with ``-P gevent`` or ``-P eventlet`` the standard library is patched first."""
    from celery import maybe_patch_concurrency

    if "health" in sys.argv:  # a probe has no time for Celery's whole command line
        from .bin.probe import run_probe

        run_probe(sys.argv[1:])

    options = {word.partition("=")[0] for word in sys.argv}
    if {"-P", "--pool"} & options and not {"--processes", "--reload"} & options:  # the supervisor's workers patch it
        try:
            maybe_patch_concurrency()
        except (ImportError, AttributeError, ValueError) as exc:
            # gevent and eventlet are packages of their own; any other pool is looked at when the app is known.
            if isinstance(exc, ModuleNotFoundError) and exc.name in ("gevent", "eventlet"):
                sys.stderr.write(f"Error: -P {exc.name} needs the package {exc.name}, which is not installed\n")
                sys.exit(2)  # bin.terminal.EXIT_USAGE, which must not be imported yet
    from .celery_private import import_program_alone

    import_program_alone()
    from .bin.root import main as run

    run(prog_name="celery-streams")


if __name__ == "__main__":
    main()
