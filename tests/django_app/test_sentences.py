"""Findings and other sentences of the core in the language of the page: all of them, and in English word for word."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import redis
from celery import Celery
from django.test import Client
from django.utils import translation

import celery_streams
from celery_streams.broker import StreamBroker
from celery_streams.conf import misspelt_settings
from celery_streams.inspect import QueueStatus
from celery_streams.message import encode
from celery_streams.monitoring import checks
from celery_streams.monitoring.alerts import misspelt_setting, never_used, odd_key, unknown_queue
from celery_streams.monitoring.checks import Finding, Workers
from celery_streams.monitoring.doctor import Diagnosis
from celery_streams.monitoring.worlds import check_worlds
from celery_streams.obstacles import find_obstacles
from celery_streams.presence import WorkerPresence
from celery_streams.probes import ClockSkew, Denial, ServerInfo
from celery_streams.redis_errors import translated
from celery_streams.said import Said, say
from celery_streams.worker.outcome import Reason
from tests.django_app.test_dashboard import bury, person, redis_away
from tests.support.redis_state import message

CORE = Path(celery_streams.__file__).parent

#: Names of settings, options and commands: the same in every language.
SAME_EVERYWHERE = {
    "maxmemory-policy ",
    "AOF, appendfsync ",
    "cluster-require-full-coverage yes",
    "-n NAME@%h",
    'INSTALLED_APPS += ["django_integration"]',
    "celery worker -Q ",
}

#: Words that no Portuguese sentence has.
ENGLISH = {"the", "is", "are", "of", "to", "and", "not", "it", "its", "messages", "message", "nothing"}


def calls(folder: Path, *names: str) -> Iterator[ast.Call]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield node


def texts(node: ast.AST) -> set[str]:
    """Return the text that stands in an expression itself, not in calls of it."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, (ast.Call, ast.FormattedValue)):
        return set()
    return {text for child in ast.iter_child_nodes(node) for text in texts(child)}


def said_by_the_core() -> set[tuple[str, ...]]:
    found = set()
    for call in calls(CORE, "say"):
        assert all(isinstance(arg, ast.Constant) for arg in call.args), ast.unparse(call)
        patterns = tuple(ast.literal_eval(arg) for arg in call.args)
        assert {one.arg for one in call.keywords} == set(re.findall(r"%\((\w+)\)s", " ".join(patterns))), patterns
        assert not re.search(r"%(?!\(\w+\)s)", " ".join(patterns)), patterns
        found.add(patterns)
    return found


def words(pattern: str) -> str:
    return re.sub(r"%\(\w+\)s|\W", "", pattern)


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_every_sentence_of_the_core_is_known_to_the_dashboard_and_no_other() -> None:
    import django_integration.dashboard

    [folder] = django_integration.dashboard.__path__
    tree = ast.parse((Path(folder) / "sentences.py").read_text(encoding="utf-8"))
    [listed] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["SENTENCES"]
    ]
    assert isinstance(listed, ast.Tuple)
    known = [
        tuple(ast.literal_eval(arg) for arg in call.args[:2]) for call in listed.elts if isinstance(call, ast.Call)
    ]

    assert len(known) == len(set(known)) > 100
    assert set(known) == said_by_the_core()


def test_every_sentence_of_the_core_is_translated(chatsite: Celery) -> None:
    from django_integration.dashboard.sentences import _translate

    for patterns in said_by_the_core():
        for count in (1, 2):
            with translation.override("en"):
                english = _translate(patterns, count)
            with translation.override("pt-br"):
                portuguese = _translate(patterns, count)
            assert english == (patterns[0] if count == 1 else patterns[-1])
            assert (portuguese != english) == bool(words(english)), english
        with translation.override("pt-br"):
            assert len(patterns) == 1 or _translate(patterns, 1) != _translate(patterns, 2)


def test_nothing_in_english_is_filled_in_or_left_out_of_the_catalogue() -> None:
    """A finding is made of sentences (mypy sees to that); what is no sentence, or filled in, holds no words."""
    found: set[str] = set()
    for call in calls(CORE, "say"):
        found |= {text for one in call.keywords for text in texts(one.value)}
    for call in calls(CORE, "Said"):
        found |= {text for one in call.args for text in texts(one)}

    assert {text for text in found if re.search(r"\w", text)} - SAME_EVERYWHERE == set()


def test_reasons_and_checks_are_those_that_there_are(chatsite: Celery) -> None:
    from django_integration.dashboard import sentences

    assert {*(reason.value for reason in Reason), "unknown"} == sentences.REASONS
    assert set(checks.CHECKS) == sentences.CHECKS
    with translation.override("en"):
        assert [sentences.reason_text(one) for one in Reason] == [one.value for one in Reason]
        assert tuple(map(sentences.check_text, checks.CHECKS)) == checks.CHECKS
    with translation.override("pt-br"):
        assert not [one for one in sentences.REASONS if sentences.reason_text(one) == one]
        assert {one for one in checks.CHECKS if sentences.check_text(one) == one} == {"cluster", "workers"}
        # A text that a page says elsewhere, and an own reason of somebody: neither is one of ours.
        assert (sentences.reason_text("Queue"), sentences.check_text("Queue")) == ("Queue", "Queue")


# -- what is said -----------------------------------------------------------------------------------------------------

GOOD = ServerInfo(
    name="Redis",
    version=(7, 0, 15),
    cluster=False,
    role="master",
    used_memory=90,
    maxmemory=100,
    policy="noeviction",
    append_only=True,
    append_fsync="everysec",
    snapshots="",
    append_ok=True,
    snapshot_ok=True,
)


def findings() -> list[Finding]:
    """Return findings of all pure checks, with numbers of one, few and many."""
    servers = [
        replace(GOOD, version=(5, 0), cluster=True, policy="allkeys-lru", append_only=False, maxmemory=0),
        replace(GOOD, role="slave", policy="volatile-ttl", append_fsync="no", configurable=False),
        replace(GOOD, role="sentinel", policy=None, append_only=False, snapshots="3600 1", configurable=False),
        replace(GOOD, append_only=False, snapshots=None, snapshot_ok=False),
        replace(GOOD, append_ok=False),
        GOOD,
    ]
    server = (
        checks.check_version,
        checks.check_role,
        checks.check_eviction,
        checks.check_memory,
        checks.check_persistence,
    )
    alive = [WorkerPresence(node, node, 1, "1", timeout, ("q",), (), 1.0) for node, timeout in (("a", 1.0), ("b", 2.5))]
    found = [
        *(judge(one) for one in servers for judge in server),
        *(checks.check_clock(ClockSkew(ahead, 0.0)) for ahead in (0.1, -12.5, 3_600.25)),
        checks.check_permissions([Denial("XADD", "NOPERM")]),
        checks.check_permissions([Denial("XADD", "NOPERM permissions keys")]),
        checks.check_permissions([Denial("XADD", "ERR", missing=True)]),
        checks.check_permissions([Denial("CLIENT ID", "no"), Denial("MEMORY USAGE", "no")]),
        *checks.check_namesakes({"w@h/1.a": 1.0, "w@h/1.b": 1.0}, {"w@h/1.a": 9.0, "w@h/1.b": 9.0}),
        *checks.check_names({"a": None, "b": "bb", "c": "cc"}, ["bb"]),
        *checks.check_partitioned({"a": None, "b": "bb"}),
        *checks.check_settings(misspelt_settings({}, {"CELERY_STREAM_URL": "x"}).values()),
        *checks.check_timeouts(alive),
        *checks.check_types(["celery-streams:{q}:dead"], "q"),
        checks.cannot("lists", "NOPERM"),
    ]
    for count in (1, 2, 12_345):
        status = replace(QueueStatus("q", 0, 0, 0, 0, 0, None, 0.0), waiting=count)
        for listed in (0, count):
            for share in (0.0, 1.0):
                for stock in ({}, {"q": ("s@h",)}):
                    for ours in ({}, {"q": ("w@h",)}):
                        workers = Workers(stock, ours)
                        found += check_worlds("q", status, listed=listed, share=share, workers=workers)
        found += check_worlds("q", replace(status, dead_workers=("d@h",)), listed=0, share=1.0, workers=None)
    return found


def test_findings_say_on_the_page_what_they_say_on_the_command_line(chatsite: Celery) -> None:
    from django_integration.dashboard.sentences import said_text

    found = findings()
    assert {one.level for one in found} == set(checks.LEVELS)
    for said in {text for one in found for text in (one.what, one.why, one.todo)}:
        with translation.override("en"):
            assert said_text(said) == said
        with translation.override("pt-br"):
            portuguese = said_text(said)
        assert bool(portuguese) == bool(said)
        assert not ENGLISH & set(portuguese.lower().split()), portuguese
        assert "%(" not in said + portuguese


def test_json_of_findings_is_plain_text() -> None:
    found = Diagnosis("redis://h", tuple(findings()))

    told = json.loads(json.dumps(found.as_dict()))["findings"]

    assert [one["what"] for one in told] == [str(one.what) for one in found.findings]
    assert all(type(value) in (str, bool, type(None)) for one in told for value in one.values())
    assert [asdict(one)["what"].patterns for one in found.findings] == [one.what.patterns for one in found.findings]


@pytest.mark.parametrize(("count", "what"), [(1, "1 mensagem morreu"), (1_234, "1.234 mensagens morreram")])
def test_numbers_and_what_is_filled_in_follow_the_language(count: int, what: str) -> None:
    inner = say("%(n)s message died", "%(n)s messages died", n=count)
    outer = say("%(what)s, %(seconds)s s ago: %(several)s", what=inner, seconds=1.5, several=(inner, Said("%(raw)s")))
    catalogue = {
        "%(n)s message died": "%(n)s mensagem morreu",
        "%(n)s messages died": "%(n)s mensagens morreram",
        "%(what)s, %(seconds)s s ago: %(several)s": "há %(seconds)s s %(what)s: %(several)s",
    }

    portuguese = outer.again(
        lambda forms, n: catalogue[forms[0] if n == 1 else forms[-1]],
        lambda number: number.translate(str.maketrans(",.", ".,")),
    )

    assert outer == f"{inner}, 1.50 s ago: {inner}; %(raw)s"
    assert portuguese == f"há 1,50 s {what}: {what}; %(raw)s"


def test_alerts_of_names_and_settings_are_said_in_portuguese(chatsite: Celery) -> None:
    from django_integration.dashboard.alert_texts import text_of

    [sentence] = misspelt_settings({}, {"CELERY_STREAM_URL": "x"}).values()
    alerts = [unknown_queue("emial", "em%(a)il"), misspelt_setting(sentence), never_used("q"), odd_key("q", ["a", "b"])]

    with translation.override("en"):
        assert [text_of(one) for one in alerts] == [one.message for one in alerts]
    with translation.override("pt-br"):
        queue, setting, unused, odd = map(text_of, alerts)
    assert queue.endswith("você quis dizer 'em%(a)il'?")
    assert setting == "CELERY_STREAM_URL não é uma configuração e não tem efeito; você quis dizer 'CELERY_STREAMS_URL'?"
    assert unused.startswith("nunca foi usada")
    assert odd.startswith("alguém mais escreveu em a, b: ")


def test_obstacles_are_said_in_portuguese(chatsite: Celery) -> None:
    from django_integration.dashboard.sentences import said_text

    headers = {"task": "t", "id": "i", "expires": "2020-01-01T00:00:00Z", "stamped_headers": ["s"], "stamps": {"s": 1}}
    revoked = {"i", '["s",1]', '["s", 1]'}

    properties = {"content_type": "application/json", "content_encoding": "utf-8"}
    found = find_obstacles(encode(headers, properties, "[[],{},{}]"), now=2e9, revoked=revoked)

    with translation.override("pt-br"):
        said = [said_text(one.text) for one in found]
    assert said[0] == "ela expirou em 2020-01-01 00:00:00+00:00"
    assert said[1] == "o id de tarefa i dela foi revogado"
    assert [one.split(" ")[-1] for one in said[2:]] == ["revogadas"]


# -- the pages --------------------------------------------------------------------------------------------------------


def test_page_of_the_doctor_is_in_portuguese(site: Celery, broker: StreamBroker) -> None:
    broker.publish("send_message", message(1))
    client: Client = person(superuser=True)

    found = client.get("/queues/alerts/?examine=yes", headers={"Accept-Language": "pt-br"}).content.decode()
    english = client.get("/queues/alerts/?examine=yes", headers={"Accept-Language": "en"}).content.decode()

    assert "1 mensagem espera e nenhum worker consome o stream" in found
    assert "Essas tarefas não são executadas." in found
    assert '<td title="consumers">consumidores (send_message)</td>' in found
    assert not {"consumes", "waits", "everything"} & set(re.sub(r"<[^>]*>", " ", found).split())
    assert "1 message waits and no worker consumes the stream" in english
    assert '<td title="consumers">consumers (send_message)</td>' in english


def test_pages_of_dead_letters_say_their_reasons_in_portuguese(site: Celery, broker: StreamBroker) -> None:
    entry = bury(broker, 1, reason="time-limit")
    bury(broker, 2, reason="<own>")
    client: Client = person(superuser=True)
    language = {"Accept-Language": "pt-br"}

    page = client.get("/queues/dead/?reason=time-limit", headers=language).content.decode()
    every = client.get("/queues/dead/", headers=language).content.decode()
    letter = client.get(f"/queues/dead/message/?queue=send_message&id={entry}", headers=language)
    file = client.get("/queues/dead/?format=json", headers=language)

    assert '<option value="time-limit" selected>tempo limite</option>' in page
    assert "<td>tempo limite</td>" in page
    assert "id-1" in page
    assert "id-2" not in page
    assert "<td>&lt;own&gt;</td>" in every
    assert "<td>tempo limite</td>" in letter.content.decode()
    assert {one["reason"] for one in json.loads(file.getvalue())} == {"time-limit", "<own>"}


def test_pages_say_in_portuguese_why_redis_does_not_answer_and_the_log_in_english(
    site: Celery, broker: StreamBroker, caplog: pytest.LogCaptureFixture
) -> None:
    client: Client = person(superuser=True)
    portuguese = {"Accept-Language": "pt-br"}

    with redis_away(site, broker):
        shown = {
            page: client.get(f"/queues/{page}", headers=portuguese).content.decode()
            for page in ("", "dead/", "delayed/", "held/", "alerts/?examine=yes")
        }
        sent = client.post("/queues/act/", {"verb": "pause", "queue": "q"}, headers=portuguese)

    for page, text in {**shown, "act/": sent.content.decode()}.items():
        # The first request meets the connection that was closed.
        assert re.search("O Redis em .* (recusou o login: ele pede uma senha|está inacessível: )", text), page
        assert not re.search("refused|cannot", text), page
    assert "O Redis em" not in caplog.text
    assert re.search("The page change_queue cannot be shown: Redis at .* refused the login: it asks", caplog.text)


def test_errors_of_redis_are_said_in_portuguese(chatsite: Celery) -> None:
    from django_integration.dashboard.sentences import error_text

    replies = [
        redis.exceptions.ConnectionError("CERTIFICATE_VERIFY_FAILED"),
        redis.exceptions.AuthenticationError("Authentication required."),
        redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        redis.exceptions.ReadOnlyError("You can't write against a read only replica."),
        redis.exceptions.NoPermissionError("this user has no permissions to run the 'xadd' command"),
        redis.exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        redis.exceptions.ResponseError("unknown command 'GET'"),
        redis.exceptions.ResponseError("unknown command 'EVALSHA'"),
        redis.exceptions.MovedError("12 127.0.0.1:7001"),
        redis.exceptions.InvalidResponse("HTTP/1.1 400 Bad Request"),
        redis.exceptions.ResponseError("strange"),
    ]

    for reply in replies:
        error = translated(reply, "GET", shown="redis://h", database=False, let_in=False)
        with translation.override("en"):
            assert error_text(error) == str(error)
        with translation.override("pt-br"):
            said = error_text(error)
        driver = str(reply).rstrip(".").lower()
        assert not ENGLISH & (set(said.lower().split()) - set(driver.split())), said
        assert pickle.loads(pickle.dumps(error)).args == error.args
        assert error_text(pickle.loads(pickle.dumps(error))) == str(error)
    assert error_text(OSError(111, "Connection refused")) == "[Errno 111] Connection refused"
