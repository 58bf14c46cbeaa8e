"""The maps in the packages' docstrings: each names every module that is there, and none that is not."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

MAPS = ["celery_streams", "celery_streams.worker", "celery_streams.concurrency", "celery_streams.monitoring",
        "celery_streams.bin", "django_integration.dashboard"]  # fmt: skip


@pytest.mark.parametrize("package", MAPS)
def test_map_of_a_package_lists_every_module_and_no_other(package: str) -> None:
    module = import_module(package)
    folder = Path(module.__file__ or "").parent
    there = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}

    listed = re.findall(r"^``(\w+)``  ", module.__doc__ or "", flags=re.MULTILINE)

    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("package", ["celery_streams.worker", "celery_streams.concurrency"])
def test_map_says_in_which_process_each_module_runs(package: str) -> None:
    rows = re.findall(r"^``\w+``  +(\S+)  ", import_module(package).__doc__ or "", flags=re.MULTILINE)

    assert rows
    assert set(rows) <= {"parent", "child", "both", "all"}
