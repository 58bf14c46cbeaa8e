"""The command line of the worker: Celery's options, and ours."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from celery.bin.worker import worker as celery_worker

from celery_streams.bin.relaunch import without
from celery_streams.bin.worker import worker as our_worker
from celery_streams.connection import RedisClient
from tests.support.control import asked
from tests.support.eventually import eventually
from tests.support.processes import ROOT, alive
from tests.support.versions import needs_celery

INFO = ("-l", "INFO")


def ready(program, count=1):
    """Wait until so many workers of a program have said that they are ready."""

    def said():
        if not program.running:
            raise RuntimeError(program.log)
        return program.log.count(" ready.") >= count

    eventually(said, timeout=30, message=program.log)


def test_every_option_of_celerys_worker_is_there_with_its_names_default_and_help_group():
    def described(command):
        return {
            option.name: (option.opts, option.is_flag, getattr(option, "help_group", None), option.default)
            for option in command.params
        }

    celerys, ours = described(celery_worker), described(our_worker)

    assert {name: ours[name] for name in celerys} == celerys
    assert {name: ours[name][2] for name in ours.keys() - celerys.keys()} == {
        "metrics_port": "Streams Options",
        "processes": "Streams Options",
        "reload": "Streams Options",
    }


def test_help_says_of_options_without_effect_that_they_have_none_and_keeps_celerys_words_otherwise():
    celerys = {option.name: option.help for option in celery_worker.params}
    ours = {option.name: option.help for option in our_worker.params if option.name in celerys}

    changed = {name for name in celerys if ours[name] != celerys[name]}

    # --disable-prefetch came with Celery 5.6.
    assert changed == {"optimization", "prefetch_multiplier", "disable_prefetch"} & celerys.keys()
    assert "No effect" in ours["optimization"]


@pytest.mark.parametrize("words", [(), ("-A", "tests.proj", "streams")], ids=["celery-streams", "celery streams"])
def test_list_of_commands_cuts_no_sentence(project, words):
    shown = project.command(*words, "--help", program="lists" if words else "streams", enabled=None)

    assert shown.wait(30) == 0
    listed = shown.log.partition("Commands:")[2]
    assert "worker" in listed
    assert "..." not in listed


def test_options_of_the_project_reach_the_worker_as_with_celery(project, tmp_path):
    (tmp_path / "optioned.py").write_text(
        "import click\n"
        "from tests.proj.celery import app\n"
        'app.user_options["worker"].add(click.Option(("--flavour",), help="Of the project."))\n'
    )

    shown = project.command("-A", "optioned", "worker", "--help", directory=tmp_path)

    assert shown.wait(30) == 0
    assert "--flavour" in shown.log
    assert "--reload" in shown.log.partition("Streams Options")[2]


def test_broker_named_on_the_command_line_is_known_to_the_project_when_it_is_imported(project, tmp_path):
    (tmp_path / "curious.py").write_text(
        "import os\nfrom tests.proj.celery import app\nprint('broker:', os.environ.get('CELERY_BROKER_URL'))\n"
    )

    told = project.command("-A", "curious", "-b", "redis://elsewhere:1/2", "report", directory=tmp_path)

    assert told.wait(30) == 0
    assert "broker: redis://elsewhere:1/2" in told.log


def test_app_and_options_may_come_from_the_environment(project, act):
    program = project.command("worker", *INFO, queue="celery")
    program.stop()
    environment = {"CELERY_APP": "tests.proj", "CELERY_WORKER_CONCURRENCY": "3", "CELERY_WORKER_POOL": "threads"}
    program.environment.update(environment)

    program.start()
    ready(program)

    assert "concurrency: 3 (thread)" in program.log
    assert act.delay("ok", 1).get(timeout=10) == 1


@needs_celery((5, 7), "before, -c takes numbers only")
def test_app_is_taken_after_the_command_and_auto_concurrency_counts_processors(project, act):
    program = project.command("worker", "-c", "auto", "-A", "tests.proj", *INFO)
    ready(program)

    (stats,) = asked(act.app, "stats").values()

    assert act.delay("ok", 1).get(timeout=10) == 1
    assert 1 <= len(stats["pool"]["processes"]) <= os.cpu_count()


def test_detached_worker_has_a_pidfile_and_a_logfile_of_its_own(project, act, tmp_path):
    pidfile, logfile = tmp_path / "w-%n.pid", tmp_path / "w-%n.log"
    written, logged = tmp_path / "w-away.pid", tmp_path / "w-away.log"
    options = ("-n", "away@test", "--pidfile", str(pidfile), "--logfile", str(logfile), "-c", "1", *INFO)

    launcher = project.command("-A", "tests.proj", "worker", "-DE", *options)

    assert launcher.wait(30) == 0
    eventually(lambda: logged.exists() and "away@test ready." in logged.read_text(), timeout=30)
    pid = int(written.read_text())
    try:
        assert pid != launcher.pid
        assert os.getsid(pid) != os.getsid(0)
        assert act.delay("ok", 1).get(timeout=10) == 1
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid))
        assert not written.exists()
    finally:
        if alive(pid):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def test_detached_worker_is_run_by_the_executable_with_the_umask_it_is_told(project, act, tmp_path):
    executable, pidfile, logfile = tmp_path / "python", tmp_path / "w.pid", tmp_path / "w.log"
    executable.write_text(f'#!/bin/sh\necho "$$" > {tmp_path}/executed\nexec {sys.executable} "$@"\n')
    executable.chmod(0o755)
    files = ("-c", "1", "--pidfile", str(pidfile), "--logfile", str(logfile))
    options = ("--umask", "027", "--executable", str(executable), "--uid", str(os.getuid()), "--gid", str(os.getgid()))

    launcher = project.command("-A", "tests.proj", "worker", "-D", "-n", "away@test", *files, *options, *INFO)

    assert launcher.wait(30) == 0, launcher.log
    eventually(lambda: logfile.exists() and "away@test ready." in logfile.read_text(), timeout=30)
    pid = int(pidfile.read_text())
    try:
        assert act.delay("ok", 1).get(timeout=10) == 1
        assert int((tmp_path / "executed").read_text()) == pid
        assert stat.S_IMODE(logfile.stat().st_mode) == 0o640
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid))
    finally:
        if alive(pid):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def test_second_worker_with_the_same_pidfile_is_refused(project, tmp_path):
    options = ("-A", "tests.proj", "worker", "-c", "1", "--pidfile", str(tmp_path / "w.pid"), *INFO)
    first = project.command(*options)
    ready(first)

    second = project.command(*options, "-n", "second@test")

    assert second.wait(30) == 73
    assert "Pidfile" in second.log
    assert first.running


def test_excluded_queue_is_not_read(project, act, worker):
    worker(queues="celery,other", options=("-X", "other"))

    kept = act.apply_async(("ok", "kept"), queue="other")

    assert act.delay("ok", 1).get(timeout=10) == 1
    assert project.ledger.runs(kept.id) == []
    assert project.status("other").waiting == 1


def test_purge_empties_streams_and_what_is_delayed(project, act, worker):
    old = [act.delay("ok", n) for n in range(20)] + [act.apply_async(("ok", n), countdown=1) for n in range(5)]

    worker(options=("--purge",))
    new = act.delay("ok", "new")

    assert new.get(timeout=10) == "new"
    assert project.counted() == Counter([new.id])
    assert project.status().delayed == 0
    assert len(old) == 25


def test_revoked_ids_outlive_the_worker_in_its_state_database(project, act, worker, tmp_path):
    options = ("--statedb", str(tmp_path / "state"))
    first = worker(name="first", options=options)
    result = act.apply_async(("ok",), countdown=60)
    result.revoke()
    eventually(lambda: result.id in str(asked(act.app, "revoked")), timeout=25)
    first.signal(signal.SIGTERM)
    first.wait()
    for key in project.broker.client.call("KEYS", "*revoked*"):
        project.broker.client.call("DEL", key)

    worker(name="second", options=options)

    assert result.id in str(asked(act.app, "revoked"))


def test_children_are_given_to_queues_and_their_successors_keep_them(project, act, worker):
    worker(queues="busy:2,quiet:1", concurrency=None)
    stats = asked(act.app, "stats")
    long = [act.apply_async(("sleep_first", n), {"seconds": 60}, queue="busy") for n in range(2)]
    runs = [project.starts(result.id)[0] for result in long]
    beside = act.apply_async(("ok", "beside"), queue="quiet")
    assert beside.get(timeout=10) == "beside"
    behind = act.apply_async(("ok", "behind"), queue="busy")

    (quiet,) = {run["pid"] for run in project.ledger.runs(beside.id)}
    os.kill(quiet, signal.SIGKILL)
    again = act.apply_async(("ok", "again"), queue="quiet")

    assert again.get(timeout=10) == "again"
    assert len(next(iter(stats.values()))["pool"]["processes"]) == 3
    assert len({run["pid"] for run in runs}) == 2
    assert project.ledger.runs(behind.id) == []
    os.kill(runs[0]["pid"], signal.SIGKILL)
    assert behind.get(timeout=10) == "behind"


def test_worker_says_when_it_is_ready_what_is_most_likely_mistyped(worker):
    running = worker(queues="celer", pool="solo", options=("--soft-time-limit", "20", "--time-limit", "10"))

    for said in (
        "No route, setting or message knows queue celer, which -Q or -X names; did you mean celery?",
        "The soft time limit (20 s) lies above the hard one (10 s)",
    ):
        assert eventually(lambda said=said: said in running.log)


@pytest.mark.one_server("the banner shows the password of the broker's URL")
def test_banner_tells_queues_pool_and_streams_without_the_password_and_what_has_no_effect(project, worker):
    client = RedisClient(project.urls["broker"])
    client.call("ACL", "SETUSER", "hidden", "on", ">verysecret", "~*", "&*", "+@all")
    url = project.urls["broker"].replace("redis://", "redis://hidden:verysecret@")
    running = worker(queues="one,two", pool="threads", broker=url, worker_direct=True, streams_key_prefix="mine")

    client.call("ACL", "DELUSER", "hidden")
    client.close()

    banner = running.log.partition("[tasks]")[0] + running.log.partition(" [streams]")[2].partition("\n\n")[0]
    assert "verysecret" not in running.log
    assert "concurrency: 2 (thread)" in banner
    assert {name for name in ("one", "two") if f".> {name} " in banner} == {"one", "two"}
    assert f".> redis:       redis://hidden:**@{url.partition('@')[2]}" in banner
    assert ".> keys:        mine:{QUEUE}" in banner
    assert ".> no effect:   worker_direct (a list queue for each worker; start a stock worker for it)" in banner


def test_banner_names_the_optimization_profile_that_has_no_effect(worker):
    fair = worker(name="fair", options=("-O", "fair"))
    plain = worker(name="plain", options=("-O", "default"))

    assert ".> no effect:   -O fair (each child takes its own next message" in fair.log
    assert "no effect" not in plain.log


# -- Ways to start that no other test takes


def open_to_others(path):
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))


def user_to_become():
    """Return --uid and --gid of nobody, if this process may become nobody, who can read the project; else its own."""
    paths = (ROOT, Path(sys.executable).resolve(), Path(sys.prefix))
    if os.getuid() == 0 and all(open_to_others(path) for path in paths):
        nobody = pwd.getpwnam("nobody")
        return ("--uid", "nobody", "--gid", str(nobody.pw_gid)), nobody.pw_uid
    return ("--uid", str(os.getuid()), "--gid", str(os.getgid())), os.getuid()


def user_of(pid):
    if sys.platform == "linux":
        return Path(f"/proc/{pid}").stat().st_uid
    return int(subprocess.run(["ps", "-o", "uid=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("words", "workers"),
    [
        pytest.param(
            ("--pool-start-method", "spawn", "-c", "2"),
            1,
            id="spawn",
            marks=needs_celery((5, 7), "before, there is no --pool-start-method"),
        ),
        pytest.param(("-P", "processes", "-c", "2"), 1, id="processes"),
        pytest.param(("--processes", "2", "-P", "asyncio", "-c", "4"), 2, id="processes-of-asyncio"),
        pytest.param(("--processes", "2", "-P", "gevent", "-c", "4"), 2, id="processes-of-gevent"),
        pytest.param(("--umask", "027", "-c", "1"), 1, id="umask"),
        pytest.param(("--executable", sys.executable, "-c", "1"), 1, id="executable"),
        pytest.param(("--heartbeat-interval", "1", "-c", "1"), 1, id="heartbeat-interval"),
    ],
)
def test_worker_that_is_started_in_a_rarer_way_runs_tasks_and_ends_well(project, act, words, workers):
    program = project.command("-A", "tests.proj", "worker", *words, *INFO)
    ready(program, workers)

    assert act.delay("ok", 1).get(timeout=10) == 1
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert project.status().consumers == 0


def test_worker_that_is_a_command_of_celerys_own_program_runs_tasks_and_ends_well(project, act):
    program = project.command("-A", "tests.proj", "streams", "worker", "-c", "1", *INFO, program="lists")
    ready(program)

    assert act.delay("ok", 1).get(timeout=10) == 1
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert project.status().consumers == 0


def test_celery_multi_starts_workers_as_the_guide_says_and_stops_them(project, act, tmp_path):
    files = (f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n.log")
    start = ("-A", "tests.proj", "--cmd=-m celery streams worker --detach", "-Q", "celery", "-c", "1", *INFO, *files)
    pidfile, log = tmp_path / "celery1.pid", tmp_path / "celery1.log"

    launcher = project.command("multi", "start", "1", *start, program="lists")
    assert launcher.wait(30) == 0
    eventually(lambda: log.exists() and " ready." in log.read_text(), timeout=30)
    pid = int(pidfile.read_text())
    try:
        assert act.delay("ok", 1).get(timeout=10) == 1
        stopper = project.command("multi", "stopwait", "1", "-A", "tests.proj", *files, program="lists")
        assert stopper.wait(30) == 0
        eventually(lambda: not alive(pid))
        assert project.status().consumers == 0
    finally:
        if alive(pid):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def test_worker_becomes_the_user_and_group_it_is_told(project, act):
    options, user = user_to_become()
    program = project.command("-A", "tests.proj", "worker", "-c", "1", *options, *INFO)
    ready(program)

    result = act.delay("ok", 1)

    assert result.get(timeout=10) == 1
    (run,) = project.ledger.runs(result.id)
    assert {user_of(program.pid), user_of(run["pid"])} == {user}
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


def test_command_line_is_repeated_without_some_options():
    words = ["-m", "celery_streams", "worker", "-DE", "--uid=3", "--gid", "4", "-D", "-n", "a-D", "--", "-D"]

    assert without(words, flags=("-D", "--detach"), valued=("--uid", "--gid")) == [
        *("-m", "celery_streams", "worker", "-E", "-n", "a-D", "--", "-D")
    ]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["-Dl", "INFO"], ["-l", "INFO"]),
        (["-EDlINFO"], ["-ElINFO"]),
        (["-DD"], []),
        (["-lDEBUG", "-QD", "-nD@h"], ["-lDEBUG", "-QD", "-nD@h"]),
    ],
)
def test_flag_is_left_out_of_a_cluster_and_a_value_stays(words, kept):
    assert without(words, flags=("-D",)) == kept


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("-Q", "a:2,b:1", "-c", "2"), "-Q asks for 3 children"),
        (("-Q", "a:2,b", "-c", "2"), "-Q asks for 3 children"),
        (("-Q", "a:2", "-P", "threads"), "prefork"),
    ],
)
def test_children_per_queue_that_leave_a_queue_to_nobody_are_refused(project, options, word):
    program = project.command("-A", "tests.proj", "worker", *options)

    assert program.wait(30) == 2
    assert word in program.log


# -- --processes


def test_processes_are_workers_with_names_of_their_own_and_a_pool_each(project, act, tmp_path):
    pidfile = tmp_path / "w.pid"
    options = ("-n", "many@test", "-P", "threads", "-c", "2", "--processes", "2", "--pidfile", str(pidfile), *INFO)
    program = project.command("-A", "tests.proj", "worker", *options)
    ready(program, 2)

    results = [act.delay("sleep", n, seconds=5.0) for n in range(4)]
    runs = [project.starts(result.id)[0] for result in results]

    assert Counter(run["hostname"] for run in runs) == {"many-1@test": 2, "many-2@test": 2}
    assert max(run["at"] for run in runs) - min(run["at"] for run in runs) < 5.0
    assert int(pidfile.read_text()) == program.pid
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert [result.get(timeout=5) for result in results] == [0, 1, 2, 3]
    assert not pidfile.exists()
    assert project.status().consumers == 0


def test_process_that_is_killed_starts_again_and_none_outlives_a_killed_supervisor(project, act):
    options = ("-n", "many@test", "-P", "solo", "--processes", "2", *INFO)
    program = project.command("-A", "tests.proj", "worker", *options, streams_visibility_timeout=2)
    ready(program, 2)
    result = act.delay("sleep_first", "done", seconds=60)
    (first,) = project.starts(result.id)

    os.kill(first["pid"], signal.SIGKILL)

    assert result.get(timeout=15) == "done"
    ready(program, 3)
    replies = asked(act.app, "stats", answers=2)
    pids = [reply["pid"] for reply in replies.values()]
    assert set(replies) == {"many-1@test", "many-2@test"}
    program.signal(signal.SIGKILL)
    if sys.platform == "linux":
        eventually(lambda: not any(alive(pid) for pid in pids))
    else:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("options", "word"),
    [(("-P", "prefork"), "-c"), (("-P", "threads", "-B"), "beat"), (("-P", "threads", "-S", "state"), "%n")],
)
def test_processes_with_options_that_cannot_be_multiplied_are_refused(project, options, word):
    program = project.command("-A", "tests.proj", "worker", "--processes", "2", *options)

    assert program.wait(30) == 2
    assert word in program.log


# -- --reload


def test_worker_starts_again_when_its_code_changes_and_waits_while_it_is_broken(project, act, tmp_path):
    tasks = tmp_path / "edited.py"
    text = "from tests.proj.celery import app\n@app.task(name='edited')\ndef edited():\n    return {}\n"
    tasks.write_text(text.format(1))
    program = project.command("-A", "edited", "worker", "-c", "1", "--reload", *INFO, directory=tmp_path)
    ready(program)
    assert act.app.send_task("edited").get(timeout=10) == 1

    tasks.write_text(text.format("2  # the second"))
    ready(program, 2)
    second = act.app.send_task("edited").get(timeout=10)
    tasks.write_text("def broken(:\n")
    eventually(lambda: "restarts when a file changes" in program.log, timeout=20)
    tasks.write_text(text.format("3  # the third one"))
    ready(program, 3)

    assert second == 2
    assert act.app.send_task("edited").get(timeout=10) == 3
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait() in (0, 1)
    assert "cold shutdown" not in program.log.partition("third")[2].replace("will initiate cold shutdown", "")
    assert project.status().consumers == 0
