"""Other task queues in the benchmark: each has its module and its command; what cannot be installed is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import benchmarks.peers
from benchmarks.peers import PEERS, PeerError, environment

MODULES = {path.stem for path in Path(benchmarks.peers.__file__).parent.glob("*.py")} - {"__init__"}


def test_every_module_is_a_peer_whose_worker_runs_it() -> None:
    assert set(PEERS) == MODULES
    for name, peer in PEERS.items():
        assert any(word.startswith(f"benchmarks.peers.{name}") for word in peer.command)


def test_peer_that_needs_a_newer_python_than_there_is_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.version_info[:2] >= PEERS["plus"].python:
        pytest.skip("this interpreter is new enough")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PeerError, match=r"no Python 3\.13 or newer is on the PATH"):
        environment("plus", tmp_path)


def test_environment_that_was_made_completely_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "huey").mkdir()
    (tmp_path / "huey" / "complete").touch()

    assert environment("huey", tmp_path) == str(tmp_path / "huey" / "bin" / "python")
