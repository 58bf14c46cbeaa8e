"""Sentences: what the doctor says, and others that speak for every language, in the language of the page.

The command line, JSON and files say them in English.
"""

from __future__ import annotations

from django.utils.translation import gettext, ngettext, ngettext_lazy

from celery_streams.said import Said

from .figures import localized

__all__ = ("check_text", "error_text", "reason_text", "said_text")


def said_text(text: str) -> str:
    """Return a sentence in the language of the page; any other text as it is."""
    return text.again(_translate, localized) if isinstance(text, Said) else text


def error_text(exc: Exception) -> str:
    """Return what an error says, in the language of the page where that is a sentence of ours."""
    return said_text(exc.args[0]) if exc.args and isinstance(exc.args[0], Said) else str(exc)


def reason_text(reason: str) -> str:
    """Return why a message is a dead letter."""
    return str(gettext(reason)) if reason in REASONS else reason


def check_text(check: str) -> str:
    """Return what a check of the doctor is called."""
    return str(gettext(check)) if check in CHECKS else check


def _translate(patterns: tuple[str, ...], count: int) -> str:
    return str(gettext(patterns[0]) if len(patterns) == 1 else ngettext(patterns[0], patterns[1], count))


def gettext_noop(text: str) -> str:
    """Mark a text for ``makemessages``; Django's own asks for settings, which an import must not need."""
    return text


#: Those of ``worker.outcome.Reason``, and of a dead letter that does not say.
REASONS = frozenset(
    (
        gettext_noop("failed"),
        gettext_noop("crashed"),
        gettext_noop("rejected"),
        gettext_noop("time-limit"),
        gettext_noop("unknown-task"),
        gettext_noop("malformed"),
        gettext_noop("not-accepted"),
        gettext_noop("invalid"),
        gettext_noop("unknown"),
    )
)

#: Those of ``monitoring.checks``.
CHECKS = frozenset(
    (
        gettext_noop("both worlds"),
        gettext_noop("clock"),
        gettext_noop("cluster"),
        gettext_noop("consumers"),
        gettext_noop("database"),
        gettext_noop("delayed"),
        gettext_noop("disk"),
        gettext_noop("eviction"),
        gettext_noop("groups"),
        gettext_noop("held"),
        gettext_noop("install"),
        gettext_noop("keys"),
        gettext_noop("lists"),
        gettext_noop("memory"),
        gettext_noop("migration"),
        gettext_noop("names"),
        gettext_noop("node names"),
        gettext_noop("paused"),
        gettext_noop("permissions"),
        gettext_noop("persistence"),
        gettext_noop("queue"),
        gettext_noop("queues"),
        gettext_noop("role"),
        gettext_noop("server"),
        gettext_noop("settings"),
        gettext_noop("timeouts"),
        gettext_noop("version"),
        gettext_noop("workers"),
    )
)

#: Every pattern that ``celery_streams`` gives to ``say``: makemessages looks for them in this package only.
SENTENCES = (
    gettext_noop("%(name)s is not a setting and has no effect; did you mean %(near)s?"),
    gettext_noop("has never been used: no messages, no workers; is the name right?"),
    gettext_noop("somebody else wrote to %(keys)s: what needs it is refused (doctor)"),
    gettext_noop("The key %(key)s holds a value of another type, which celery-streams did not write"),
    gettext_noop(
        "Redis refuses all that needs it (WRONGTYPE). The rest goes on, and so does this when the key is gone."
    ),
    gettext_noop("Find out who wrote it, and move it away: RENAME %(key)s KEPT"),
    gettext_noop("streams_queues names it, but no queue, route or message does; did you mean %(near)s?"),
    gettext_noop("Metrics do not say how much memory queues take, and streams_dead_letter_max_memory has no effect"),
    gettext_noop("Managed servers keep some of their settings to themselves; nothing is wrong because of that."),
    gettext_noop(
        "Set %(name)s to %(value)s where your provider has its settings, if it has this one (docs/providers.md)."
    ),
    gettext_noop("A problem there would go unnoticed."),
    gettext_noop(
        "When memory is short Redis deletes whole streams: every task in them is lost, without an error anywhere."
    ),
    gettext_noop("%(share)s of maxmemory is used"),
    gettext_noop("Blocking reads are ended through a stream of each consumer instead"),
    gettext_noop("Not known: %(text)s"),
    gettext_noop("CONFIG SET %(name)s %(value)s (and in redis.conf)."),
    gettext_noop("Could not be checked: %(text)s"),
    gettext_noop("A primary, not a cluster"),
    gettext_noop("When it is full, publishing fails with BrokerFull; workers go on."),
    gettext_noop("Start more workers, raise maxmemory, purge dead letters, or set streams_max_length."),
    gettext_noop("Nothing is written to disk"),
    gettext_noop("A restart of Redis loses every task."),
    gettext_noop("This host's clock is %(seconds)s s ahead of Redis'"),
    gettext_noop("This host's clock is %(seconds)s s behind Redis'"),
    gettext_noop(
        "Redis' clock decides when a delayed message is due: eta and countdown of tasks published here are off by it."
    ),
    gettext_noop("Run NTP on this host (timedatectl set-ntp true), and on that of Redis if it is yours."),
    gettext_noop("ACL SETUSER the user with ~PREFIX:* (streams_key_prefix) for the keys, and the commands above."),
    gettext_noop("Not permitted: %(commands)s"),
    gettext_noop("Publishing, running or recovering tasks will fail. The server says: %(text)s"),
    gettext_noop("streams_partitions names %(name)s, which is no queue on streams yet"),
    gettext_noop("It has no effect: the default applies."),
    gettext_noop("Redis %(version)s is too old"),
    gettext_noop("XPENDING IDLE, XTRIM MINID and other commands that recovery needs came with Redis 6.2."),
    gettext_noop("Upgrade to Redis 6.2 or later, or to Valkey."),
    gettext_noop("The server is a node of a Redis Cluster"),
    gettext_noop("Keys of other slots are refused with MOVED; publishes to some queues will fail."),
    gettext_noop("Set streams_url to redis+cluster://HOST:PORT."),
    gettext_noop("It takes no writes: nothing can be published or acknowledged."),
    gettext_noop("Point streams_url at the primary, or use a sentinel:// URL."),
    gettext_noop("the server does not report its maxmemory-policy"),
    gettext_noop("Look it up at your provider: with allkeys-... it would throw tasks away."),
    gettext_noop(
        "Streams have no expiry and are safe; results and other keys with one are evicted when memory is short."
    ),
    gettext_noop("%(why)s (maxmemory is not set, so not yet.)"),
    gettext_noop("maxmemory is not set"),
    gettext_noop("A backlog can grow until the system kills Redis."),
    gettext_noop("Redis may refuse writes (MISCONF), and a restart loses what is not on disk."),
    gettext_noop("Look at the server's log: a full disk, or permissions."),
    gettext_noop(
        "A power failure can lose about the last second of publishes, and so can a crash of Redis on a slow disk."
    ),
    gettext_noop("Nothing, unless that second matters: appendfsync always."),
    gettext_noop("the server has no AOF, and does not report whether it makes snapshots"),
    gettext_noop(
        "Look up at your provider what survives a restart or a failover: without persistence or replica no task."
    ),
    gettext_noop("Snapshots only (save %(save)s)"),
    gettext_noop("A crash of Redis loses everything since the last snapshot, which may be minutes of tasks."),
    gettext_noop("Every command that is needed is permitted"),
    gettext_noop("Not permitted, and not needed: %(commands)s"),
    gettext_noop("%(what)s."),
    gettext_noop("Nothing."),
    gettext_noop("The server does not have these commands: use Redis 6.2 or later, or another plan or provider."),
    gettext_noop("ACL SETUSER the user with %(rules)s"),
    gettext_noop("The server is a replica"),
    gettext_noop("The server is a %(role)s"),
    gettext_noop("Nothing, for tasks; for results: %(todo)s"),
    gettext_noop("Set maxmemory: publishers then get an error (BrokerFull), workers go on."),
    gettext_noop("Nothing, if your provider bounds the memory; streams_max_length bounds queues."),
    gettext_noop("The last snapshot failed"),
    gettext_noop("The last append to the AOF failed"),
    gettext_noop("how often the AOF is flushed to the disk (appendfsync); everysec is the default"),
    gettext_noop("Nothing, unless a second of publishes matters: ask your provider."),
    gettext_noop("A power failure loses what the system had not written, often half a minute."),
    gettext_noop("%(count)s live workers have the node name %(node)s"),
    gettext_noop(
        "No task is lost or run twice because of it, for each acknowledges only its own messages; but "
        "remote control, events and rate limits treat them as one worker."
    ),
    gettext_noop("Give each worker a name of its own (%(option)s), and each container a host name of its own."),
    gettext_noop("No queue is spread by it."),
    gettext_noop("Correct its name."),
    gettext_noop("Live workers have different visibility timeouts (%(timeouts)s)"),
    gettext_noop(
        "Each is judged by its own timeout; but a worker of an older version judges all others by its own, and may "
        "claim what a slower one is still running."
    ),
    gettext_noop(
        "Give all of them the same streams_visibility_timeout, and restart those that still have the old one."
    ),
    gettext_noop("streams_queues names %(name)s, which no queue, route or message has; did you mean %(near)s?"),
    gettext_noop("Correct streams_queues: %(near)s."),
    gettext_noop("streams_queues names %(name)s, which no queue, route or message has yet"),
    gettext_noop("If it is misspelt, messages for the intended queue go to Celery's list."),
    gettext_noop("Nothing, if the name is right."),
    gettext_noop("no message, worker or setting knows this queue: is the name right?"),
    gettext_noop("no message, worker or setting knows this queue; did you mean %(near)s?"),
    gettext_noop("What is said about it here is true of any name."),
    gettext_noop("Ask without a name for all queues."),
    gettext_noop("%(stream)s begins with messages that were delivered and are in no consumer's list"),
    gettext_noop(
        "Somebody deleted their consumer or acknowledged them by hand (XGROUP, XACK), or made the group anew at its "
        "end. They wait until a worker finds them, which looks once a minute."
    ),
    gettext_noop("%(what)s; did you mean %(near)s?"),
    gettext_noop("Correct streams_partitions: %(near)s."),
    gettext_noop("Messages for %(near)s go to the stream all the same."),
    gettext_noop("Messages for %(near)s go to Celery's list."),
    gettext_noop("Start a worker (%(command)s)."),
    gettext_noop("celery_streams.install was called; streams_enabled is off: publishes go to Celery's lists"),
    gettext_noop("celery_streams.install was never called for this app"),
    gettext_noop("Its publishes go to Celery's lists whatever streams_enabled says."),
    gettext_noop("Call celery_streams.install(app) where it is made (with Django: %(setting)s)."),
    gettext_noop("The streams share their database with no results"),
    gettext_noop("It has been paused for %(seconds)s s"),
    gettext_noop("Celery's own queues cannot be read: %(error)s"),
    gettext_noop("The broker is not Redis, or is a Redis Cluster."),
    gettext_noop("Results are kept in the cluster of the streams"),
    gettext_noop("Both share the memory of its nodes; FLUSHALL to clear results deletes every queued task."),
    gettext_noop("Give one of them another cluster or server: streams_url or result_backend."),
    gettext_noop("Results are kept in the database of the streams"),
    gettext_noop("FLUSHDB to clear results deletes every queued task; both share one maxmemory."),
    gettext_noop("Give one of them another database, or another server: streams_url or result_backend."),
    gettext_noop("celery_streams.install was called; streams_enabled is on"),
    gettext_noop("Nothing odd"),
    ngettext_lazy(
        "%(stream)s holds %(n)s message and has no consumer group",
        "%(stream)s holds %(n)s messages and has no consumer group",
        "n",
    ),
    gettext_noop("No worker has read this stream yet, or the group was destroyed; what is in it waits."),
    gettext_noop("Start a worker (%(command)s): it creates the group and skips nothing."),
    ngettext_lazy(
        "%(consumer)s holds %(n)s message and was silent for %(seconds)s s",
        "%(consumer)s holds %(n)s messages and was silent for %(seconds)s s",
        "n",
    ),
    gettext_noop("Its process is dead, and no live worker of the queue takes over what it held."),
    gettext_noop("Start a worker (%(command)s): it puts them back within %(seconds)s s."),
    ngettext_lazy(
        "%(n)s consumer of a dead worker is left in the group",
        "%(n)s consumers of dead workers are left in the group",
        "n",
    ),
    gettext_noop("They hold nothing and cost a little memory."),
    gettext_noop("Nothing: the next worker of the queue deletes them."),
    gettext_noop("Its waiting tasks do not start. A pause survives every restart, and may have been forgotten."),
    gettext_noop("If its tasks should run again: %(command)s"),
    ngettext_lazy(
        "%(n)s message held back by limits, and no live worker releases any",
        "%(n)s messages held back by limits, and no live worker releases any",
        "n",
    ),
    gettext_noop("A worker of the queue releases them when their limits leave room."),
    gettext_noop("The earliest delayed message is %(seconds)s s late"),
    gettext_noop("No worker of the queue moves delayed messages to the stream when they are due."),
    ngettext_lazy(
        "%(n)s message is on its way between two databases",
        "%(n)s messages are on their way between two databases",
        "n",
    ),
    gettext_noop("A migration is running, or was killed: no worker sees these messages."),
    gettext_noop("If none is running: %(command)s (or --to lists) again; it goes on."),
    gettext_noop("%(what)s: %(reason)s"),
    gettext_noop("Workers of an older version, which knows no pauses, read it: %(workers)s"),
    gettext_noop("They start its tasks as if it were not paused."),
    gettext_noop("Update these workers, or stop them from reading it: celery control cancel_consumer"),
    gettext_noop("workers cannot be asked: %(error)s"),
    gettext_noop("Celery's own broker: %(error)s"),
    gettext_noop("Remote control, events and every queue that is not on streams need it."),
    gettext_noop("Set broker_url, or start it."),
    gettext_noop("Celery's lists cannot be read: %(error)s"),
    gettext_noop("The server keeps it to itself."),
    gettext_noop("%(what)s, %(node)s"),
    gettext_noop("A master of a Redis Cluster"),
    gettext_noop("cluster-require-full-coverage no: the others serve on while one shard is away"),
    gettext_noop("%(what)s, each of %(count)s nodes"),
    gettext_noop("No node serves %(count)s of the slots"),
    gettext_noop("Queues that lie there can be neither published to nor read."),
    gettext_noop("Bring the node that had them back, or give them to another one: redis-cli --cluster fix."),
    gettext_noop("cluster-require-full-coverage is not known"),
    gettext_noop(
        "While a shard has no master all others refuse their queues, too: publishes fail and workers wait "
        "until it has one again. Nothing is lost by that, and nothing claimed."
    ),
    gettext_noop("CONFIG SET cluster-require-full-coverage no on every node, if the others' queues shall go on."),
    gettext_noop("%(what)s; %(workers)s drains it"),
    gettext_noop("%(what)s; %(workers)s died"),
    ngettext_lazy(
        "%(n)s message is on Celery's list while publishers write to the stream",
        "%(n)s messages are on Celery's list while publishers write to the stream",
        "n",
    ),
    ngettext_lazy(
        "%(n)s message is on the stream while publishers write to Celery's list",
        "%(n)s messages are on the stream while publishers write to Celery's list",
        "n",
    ),
    ngettext_lazy(
        "%(n)s message waits and no worker consumes the stream",
        "%(n)s messages wait and no worker consumes the stream",
        "n",
    ),
    ngettext_lazy(
        "%(n)s message waits on Celery's list, where publishers write, and no stock worker consumes it",
        "%(n)s messages wait on Celery's list, where publishers write, and no stock worker consumes it",
        "n",
    ),
    gettext_noop("These tasks never run."),
    gettext_noop("Start a stock worker (%(stock)s), or turn streams on and %(command)s"),
    gettext_noop("These tasks do not run."),
    gettext_noop("Order between the two sides is not kept."),
    gettext_noop("Stop the stock worker when the list is empty."),
    gettext_noop("The stock worker %(workers)s consumes Celery's list, which gets no new messages"),
    gettext_noop("It sits idle, and its capacity is missing."),
    gettext_noop("Replace it: %(command)s"),
    gettext_noop("Stop the stream worker when the stream is empty."),
    gettext_noop("No stream worker consumes the stream: these tasks never run."),
    gettext_noop("%(back)s, or until it is empty %(command)s"),
    gettext_noop("It was killed, or cannot reach Redis; new messages will wait."),
    gettext_noop("No stock worker consumes the list: these tasks never run."),
    gettext_noop("If no stock worker consumes the list, these tasks never run."),
    gettext_noop("No worker consumes the stream"),
    gettext_noop("tasks with its stamp %(stamp)s were revoked"),
    gettext_noop("it expired at %(at)s"),
    gettext_noop("its task id %(id)s was revoked"),
    gettext_noop("The cluster at %(server)s is not ready: %(error)s"),
    gettext_noop("no slot is served"),
    gettext_noop("Redis at %(server)s did not answer just now; it is asked again in a moment"),
    gettext_noop("no node serves slot %(slot)s"),
    gettext_noop(
        "The server at %(server)s is a replica and takes no writes: use the address of the primary, or sentinel://"
    ),
    gettext_noop("Redis at %(server)s is not ready: a failover is under way"),
    gettext_noop("%(what)s must be a JSON object, not %(kind)s"),
    gettext_noop("not JSON: %(error)s"),
    gettext_noop(" (if it is a Sentinel, use sentinel:// and name the master with ?master_name=...)"),
    gettext_noop(" (that server is no Sentinel: use redis://)"),
    gettext_noop(" (does it speak TLS? If not, use redis://)"),
    gettext_noop(" (a file that its TLS options name is not there)"),
    gettext_noop(
        " (name the CA that signed it with ?ssl_ca_certs=FILE, or turn off verification with ?ssl_cert_reqs=CERT_NONE)"
    ),
    gettext_noop(" (look at its log, and make room on its disk; then BGSAVE has it try again)"),
    gettext_noop(
        " (raise maxmemory, or start more workers: they go on, and make room; streams_max_length bounds queues)"
    ),
    gettext_noop("Redis at %(server)s failed %(command)s: %(error)s"),
    gettext_noop(
        "Redis at %(server)s is a node of a Redis Cluster (%(error)s): set broker_url, or streams_url, to "
        "redis+cluster://HOST:PORT (rediss+cluster:// with TLS)"
    ),
    gettext_noop(
        "Redis at %(server)s runs no Lua scripts (%(error)s), without which streams do not work; use a server or a "
        "plan that permits EVAL"
    ),
    gettext_noop("it asks for a password (redis://:PASSWORD@HOST, or redis://USER:PASSWORD@HOST)"),
    gettext_noop("Redis at %(server)s refused the login: %(error)s"),
    gettext_noop(
        "Redis at %(server)s has no such database (%(error)s): use database 0, and streams_key_prefix to keep "
        "projects apart"
    ),
    gettext_noop("Redis at %(server)s does not permit %(command)s (%(script)s): %(error)s"),
    gettext_noop("Redis at %(server)s does not permit %(command)s: %(error)s"),
    gettext_noop("Redis at %(server)s does not have %(command)s: %(error)s%(hint)s"),
    gettext_noop("Redis at %(server)s cannot be reached: %(error)s%(hint)s"),
    gettext_noop("%(what)s (what listens there is no Redis, or wants TLS: rediss://)"),
    gettext_noop("Redis at %(server)s is not ready: %(error)s%(hint)s"),
    gettext_noop("Redis at %(server)s is full: %(error)s%(hint)s"),
    gettext_noop("Redis at %(server)s refused the login with a token: %(error)s"),
)
