"""preparation: a virtual environment with one release of Celery, and its released source archive, which has ``t/``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

__all__ = ("CELERY", "Prepared", "prepare", "requirements")

ROOT = Path(__file__).resolve().parents[2]

#: The release whose tests are run unless ``--celery`` names another; the baseline was recorded with it.
CELERY = "5.7.0"

#: What the baseline was recorded with; another release of Celery gets what it asks for itself.
_BASELINE = ("kombu==5.7.0", "redis==8.1.0")

#: What Celery's tests need, pinned so that results stay comparable.
_PINNED = (
    "hiredis==3.5.0",
    "pytest==9.1.1",
    "pytest-celery==1.3.0",
    "pytest-click==1.1.0",
    "pytest-order==1.5.0",
    "pytest-rerunfailures==16.7",
    "pytest-subtests==0.15.0",
    "pytest-timeout==2.4.0",
    "flower==2.2.0",
    "freezegun==1.5.5",
    "fakeredis[lua]==2.40.0",
    *("Django>=5.2,<6.1", "boto3", "cryptography", "ephem", "moto", "msgpack", "pydantic", "pyyaml"),
    *("sqlalchemy", "tblib"),
)


class Prepared:
    """Where one release of Celery is: below ``home``, and another than the usual one in a folder there."""

    def __init__(self, home: Path, celery: str = CELERY) -> None:
        self.home = home if celery == CELERY else home / f"with-{celery}"
        self.celery = celery
        self.python = self.home / "venv" / "bin" / "python"
        self.source = self.home / f"celery-{celery}"


def requirements(celery: str = CELERY) -> list[str]:
    """Return what is installed: Celery, the pinned packages, and what celery-streams itself depends on."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert found is not None, "pyproject.toml has no dependencies"
    pinned = (f"celery=={celery}", *(_BASELINE if celery == CELERY else ()), *_PINNED)
    return [*pinned, *re.findall(r'"([^"]+)"', found[1])]


def prepare(home: Path, *, celery: str = CELERY, say: Callable[[str], object]) -> Prepared:
    """Make what is missing below ``home``; a second call with the same requirements does nothing.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed, or the archive cannot be had.
    """
    prepared = Prepared(home, celery)
    home = prepared.home
    home.mkdir(parents=True, exist_ok=True)
    wanted = "\n".join(requirements(celery)) + "\n"
    installed = home / "installed.txt"
    if not prepared.python.exists() or not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        say(f"Installing Celery {celery} and what its tests need in {home / 'venv'}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home / "venv")], check=True)
        _pip(prepared, "install", *requirements(celery))
        installed.write_text(wanted, encoding="utf-8")
    if not (prepared.source / "t" / "integration").is_dir():
        say(f"Taking the source archive of Celery {celery} from the package registry")
        _pip(prepared, "download", "--no-deps", "--no-binary", ":all:", f"celery=={celery}", "--dest", str(home))
        archive = next(home.glob("celery-*.tar.gz"))
        with tarfile.open(archive) as tar:
            # Older 3.10 and 3.11 have no filters.
            if hasattr(tarfile, "data_filter"):
                tar.extractall(home, filter="data")
            else:
                tar.extractall(home)
        archive.unlink()
    return prepared


def _pip(prepared: Prepared, command: str, *words: str) -> None:
    subprocess.run(
        [str(prepared.python), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *words], check=True
    )


def copy_tests(prepared: Prepared, tree: Path) -> None:
    """Make ``tree`` hold Celery's tests and nothing else: the package itself must come from the environment."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    shutil.copytree(prepared.source / "t", tree / "t")
    shutil.copy(prepared.source / "pyproject.toml", tree)
