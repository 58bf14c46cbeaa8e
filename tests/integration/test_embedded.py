"""The private server of the demo and the tests: it starts, survives what it should, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from celery_streams import embedded
from celery_streams.connection import RedisClient
from celery_streams.embedded import EmbeddedRedis, ServerMissing, find_server
from celery_streams.exceptions import BrokerFull, BrokerUnavailable, ConfigurationError
from tests.support.eventually import eventually


def answers(url: str) -> bool:
    try:
        return bool(RedisClient(url).call("PING") == b"PONG")
    except BrokerUnavailable:
        return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_two_servers_do_not_share_data() -> None:
    with EmbeddedRedis() as one, EmbeddedRedis() as other:
        RedisClient(one.url).call("SET", "key", "value")

        found = RedisClient(other.url).call("GET", "key")

    assert found is None


def test_server_and_directory_are_gone_after_the_block() -> None:
    with EmbeddedRedis() as server:
        url, pid, directory = server.url, server.pid, server._directory
        assert answers(url)
        assert directory is not None
        assert directory.is_dir()

    assert not answers(url)
    assert not alive(pid or 0)
    assert not directory.exists()


def test_data_survives_a_kill_with_appendonly() -> None:
    with EmbeddedRedis(appendonly=True) as server:
        url = server.url
        RedisClient(url).call("SET", "key", "value")

        server.kill()
        gone = answers(url)
        server.start()

        assert not gone
        assert server.url == url
        assert RedisClient(url).call("GET", "key") == b"value"


def test_restart_without_appendonly_is_empty_and_on_the_same_port() -> None:
    with EmbeddedRedis() as server:
        url = server.url
        RedisClient(url).call("SET", "key", "value")

        server.restart()

        assert server.url == url
        assert RedisClient(url).call("GET", "key") is None


def test_server_refuses_writes_beyond_maxmemory() -> None:
    with EmbeddedRedis(maxmemory=3_000_000) as server:
        client = RedisClient(server.url)

        with pytest.raises(BrokerFull):
            for number in range(100):
                client.call("SET", number, b"x" * 100_000)


def test_further_arguments_reach_the_server() -> None:
    with EmbeddedRedis(args=("--databases", "3")) as server:
        assert RedisClient(server.database_url(2)).call("CONFIG", "GET", "databases") == [b"databases", b"3"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's death signal is Linux' own")
def test_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import time
        from celery_streams.embedded import EmbeddedRedis
        with EmbeddedRedis() as server:
            print(server.pid, flush=True)
            time.sleep(60)  # until it is killed
        """
    )
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)

        parent.send_signal(signal.SIGKILL)

        eventually(lambda: not alive(pid), message="the server of a killed process ended")


def test_forked_child_leaves_the_server_alone() -> None:
    code = textwrap.dedent(
        """
        import os, sys
        from celery_streams.connection import RedisClient
        from celery_streams.embedded import EmbeddedRedis
        server = EmbeddedRedis()
        server.start()
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        assert server._directory.is_dir()
        print(RedisClient(server.url).call("PING"))
        server.stop()
        """
    )

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (run.stdout.strip(), run.returncode) == ("b'PONG'", 0), run.stderr


def test_missing_server_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ServerMissing) as caught:
        find_server(path=str(tmp_path), packages=())

    assert isinstance(caught.value, ConfigurationError)
    assert "celery-streams[demo]" in str(caught.value)
    assert "apt install redis-server" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shim_that_refuses_is_no_server(tmp_path: Path) -> None:
    shim = tmp_path / "redis-server"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)

    with pytest.raises(ServerMissing):
        find_server(path=str(tmp_path), packages=())


def test_server_of_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "carrier" / "bin" / "redis-server"
    binary.parent.mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)

    found = find_server(path=os.devnull, packages=(("absent", "bin/*"), ("carrier", "bin/redis-server")))

    assert found == binary


def test_server_that_ends_at_once_says_why() -> None:
    with pytest.raises(BrokerUnavailable, match="ended at once"):
        EmbeddedRedis(args=("--no-such-option", "1")).start()


def test_server_whose_port_somebody_takes_meanwhile_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        free, first = embedded._free_port, iter([taken])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(first, None) or free())

        with EmbeddedRedis() as server:
            assert server.port != taken
            assert server.pid is not None


def test_server_gives_up_when_each_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(embedded, "_free_port", lambda: other.getsockname()[1])

        with pytest.raises(BrokerUnavailable, match="ended at once"):
            EmbeddedRedis().start()
