"""Which integration tests run on a Redis Cluster with ``pytest --on-cluster``, and why the others do not.

Each module whose tests ask for ``client``, ``broker``, ``app`` or ``streams_url`` stands in one of the two tables. All
others start what they need, so that there is nothing to put on a cluster. Single cases have the mark ``one_server``.
"""

from __future__ import annotations

__all__ = ("HOLDS", "LEFT_OUT")

#: Modules that run there, but for what stands in LEFT_OUT or has the mark.
HOLDS = frozenset(
    (
        "test_broker_publish",
        "test_broker_recover",
        "test_broker_settle",
        "test_child_batch",
        "test_claimer",
        "test_dead_children",
        "test_dead_letters_cli",
        "test_dead_search",
        "test_due_times",
        "test_forget_command",
        "test_fronts",
        "test_handovers",
        "test_inspect",
        "test_json_of_failures",
        "test_newest_one",
        "test_one_message",
        "test_order_of_held",
        "test_partitions",
        "test_pauses",
        "test_places",
        "test_presence",
        "test_reader",
        "test_replay_obstacles",
        "test_states_model",
        "test_unique_endings",
    )
)

_COUNTS = "it counts the commands, or the connections, of one server"
_TOGETHER = "its queues lie in several slots, and a worker has a claimer, a promoter and a read for each"
_SERVER = "what it is about, or what it asks, is one server: its users, its settings, its proxy, its log"
_LISTS = "a cluster holds no lists of Celery's"
_BY_NODE = "keys are deleted, or a command is refused, at one node"

#: Module, or module and test -> why it does not run there.
LEFT_OUT = {
    "test_acl_line": _SERVER,
    "test_active_requests": _SERVER,
    "test_bootsteps": _SERVER,
    "test_broker_full": _SERVER,
    "test_broker_refused": _SERVER,
    "test_clock_steps": _SERVER,
    "test_closed_connections": _SERVER,
    "test_connection_refusals": _SERVER,
    "test_control_pipe": _SERVER,
    "test_credentials": _SERVER,
    "test_doctor": _SERVER,
    "test_forbidden_queue": _SERVER,
    "test_health": _SERVER,
    "test_lost_reply": _SERVER,
    "test_mixed_fleet": _SERVER,
    "test_monitoring_files": _SERVER,
    "test_no_room": _SERVER,
    "test_permissions": _SERVER,
    "test_pools": _SERVER,
    "test_redis_errors": _SERVER,
    "test_scripts_denied": _SERVER,
    "test_sentinel": _SERVER,
    "test_services": _SERVER,
    "test_silent_workers": _SERVER,
    "test_spare_connections": _SERVER,
    "test_unblocking": _SERVER,
    "test_unix_socket": _SERVER,
    "test_adopt_command": _LISTS,
    "test_bulk": _LISTS,
    "test_command_line": _LISTS,
    "test_migration": _LISTS,
    "test_mistyped": _LISTS,
    "test_odd_entries": _LISTS,
    "test_plans": _LISTS,
    "test_publish": _LISTS,
    "test_purge_command": _LISTS,
    "test_status": _LISTS,
    "test_step_bytes": _LISTS,
    "test_terminal": _LISTS,
    "test_words_of_commands": _LISTS,
    "test_delayed_turns": _TOGETHER,
    "test_history": _TOGETHER,
    "test_keys_of_other_types": _TOGETHER,
    "test_odd_control_keys": _TOGETHER,
    "test_tallies": _TOGETHER,
    "test_taken_by_hand": _BY_NODE,
    "test_claimer::test_streams_that_cannot_be_listened_to_cost_looks_and_nothing_else": _SERVER,
    "test_claimer::test_what_one_look_puts_back_is_bounded_over_all_queues_together": _TOGETHER,
    "test_claimer::test_where_nothing_lies_looks_cost_nothing_however_many_queues_there_are": _COUNTS,
    "test_claimer::test_queue_that_is_read_from_now_on_is_looked_at": _TOGETHER,
    "test_dead_letters_cli::test_replay_that_is_killed_half_way_and_run_again_replays_each_once": _SERVER,
    "test_partitions::test_migration_to_lists_takes_all_partitions_along_and_back_loses_nothing": _LISTS,
    "test_partitions::test_worker_that_may_not_look_for_partitions_reads_those_of_its_settings": _SERVER,
    "test_pauses::test_control_class_of_the_project_stays": _SERVER,
    "test_pauses::test_reader_of_nothing_but_paused_queues_waits_without_asking_and_goes_on_at_once": _COUNTS,
    "test_presence::test_idle_worker_says_in_each_round_that_redis_takes_no_beat_until_it_does": _SERVER,
    "test_reader::test_message_that_comes_alone_costs_five_commands": _COUNTS,
    "test_reader::test_missing_groups_are_made_again_and_nothing_that_waits_is_skipped": _BY_NODE,
    "test_reader::test_reader_holds_no_more_than_it_asked_for": _TOGETHER,
    "test_reader::test_reader_that_is_blocked_while_its_group_vanishes_makes_it_again": _BY_NODE,
    "test_reader::test_turns_of_queues_do_not_come_before_priorities": _TOGETHER,
    "test_reader::test_what_was_read_is_handed_out_when_the_acknowledgements_are_refused": _BY_NODE,
    "test_reader::test_where_much_waits_it_is_read_without_the_script": _COUNTS,
}
