"""app_name: the app that ``-A`` names, or what is wrong: with the name, in one line, or with the project's own code."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from types import FunctionType, TracebackType

import celery.app.utils
import celery.utils.imports
import click
import kombu.exceptions
import kombu.utils.imports
from celery import Celery
from celery.app.utils import find_app

from ..spelling import nearest

__all__ = ("load_app",)

#: The files whose frames stand before those of the project in the traceback of a module that failed.
_IMPORTING = frozenset(
    module.__file__
    for module in (sys.modules[__name__], importlib, celery.app.utils, celery.utils.imports, kombu.utils.imports)
) | {kombu.exceptions.__file__}


def load_app(name: str) -> Celery:
    """Load the app that ``-A`` names.

    Raises:
        click.UsageError: there is no such module or app; in one line.
        click.ClickException: the module is there and failed; with the traceback of the project's own code.
    """
    module, _, attribute = name.partition(":")
    if os.sep in module or not all(module.split(".")):
        raise click.UsageError(f"-A {name!r}: not the name of a module, such as proj or proj.celery{_meant(module)}")
    try:
        found = find_app(name)
    except Exception as exc:
        # The project's module may raise anything; its author needs to see where.
        # For proj:app, what find_app tried last hides what the module raised.
        failed = next(filter(_is_of_project, (exc, exc.__context__)), None) or _hidden_failure(module)
        if failed is not None:
            raise click.ClickException(f"-A {name} failed to load:\n{_traceback(failed)}") from exc
        raise click.UsageError(f"-A {name}: {_why(module, attribute, exc)}") from exc
    if not isinstance(found, Celery):
        raise click.UsageError(f"-A {name}: {_what(found)}")
    return found


def _meant(path: str) -> str:
    """Return a question with the module that somebody may have meant who wrote a path."""
    parts = path.removesuffix(".py").removesuffix(".").replace(os.sep, ".").strip(".").split(".")
    return f"; did you mean -A {'.'.join(parts)}?" if all(parts) else ""


def _what(found: object) -> str:
    if isinstance(found, FunctionType):
        return f"that is the function {found.__name__}; name a module that calls it and keeps the Celery app it returns"
    return f"that is no Celery app, but of type {type(found).__name__}"


def _why(module: str, attribute: str, error: BaseException) -> str:
    """Say in one line which part of the name is not there."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if attribute and module in sys.modules:
        near = nearest(attribute, [name for name, one in vars(sys.modules[module]).items() if isinstance(one, Celery)])
        return f"module {module!r} has no attribute {attribute!r}{near}"
    if missing is None:
        return f"no Celery app there ({error})"
    parent, _, last = missing.rpartition(".")
    places = getattr(sys.modules.get(parent), "__path__", ()) if parent else [os.getcwd()]
    if last == "py":
        return f"there is no module {missing!r}; a name has no .py: -A {parent}"
    near = nearest(last, [found.name for found in pkgutil.iter_modules(places)], 0.7)
    return f"there is no module {missing!r} (looked in {os.getcwd()} and sys.path){near}"


def _hidden_failure(module: str) -> BaseException | None:
    """Return what a package's module ``celery`` raises: ``find_app`` takes an ImportError in it for its absence."""
    if not hasattr(sys.modules.get(module), "__path__"):
        return None
    try:
        importlib.import_module(f"{module}.celery")
    except Exception as exc:  # noqa: BLE001  (the project's own code; it is shown)
        return exc if _is_of_project(exc) else None
    return None


def _is_of_project(error: BaseException | None) -> bool:
    """Return whether the error came out of the project's code, and not out of looking for it."""
    return error is not None and (isinstance(error, SyntaxError) or _from_project(error.__traceback__) is not None)


def _from_project(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and _is_importing(tb.tb_frame.f_code.co_filename):
        tb = tb.tb_next
    return tb


def _is_importing(filename: str) -> bool:
    return filename in _IMPORTING or filename.startswith("<frozen importlib")


def _traceback(error: BaseException) -> str:
    """Write the traceback of the project's own code: without the frames, and the errors, of looking for it."""
    said = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = said
    while part is not None:
        frames = list(part.stack)
        while frames and _is_importing(frames[0].filename):
            frames.pop(0)
        part.stack = traceback.StackSummary.from_list(frames)
        if part.__context__ is not None and all(_is_importing(frame.filename) for frame in part.__context__.stack):
            part.__context__ = None
        part = part.__cause__ or part.__context__
    return "".join(said.format()).rstrip()
