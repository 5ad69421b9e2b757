"""What Cloister promises when things fail, and what holds each promise: cases of the bench, and tests."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.reliability import crashes, load, network, surroundings
from tests.reliability.outcomes import Outcome

Run = Callable[[int, Path], Outcome]


@dataclass(frozen=True)
class Case:
    """An experiment, the same in every run with the same seed."""

    run: Run
    seeds: int = 1  # in a whole run of the bench


CASES = {
    "server-failpoints": Case(partial(crashes.server_at_failpoints, masks=False)),
    "server-failpoints-masked": Case(partial(crashes.server_at_failpoints, masks=True)),
    "server-random": Case(partial(crashes.server_at_random, masks=False), 5),
    "server-random-masked": Case(partial(crashes.server_at_random, masks=True), 5),
    "agent-failpoints": Case(partial(crashes.agent_at_failpoints, masks=False)),
    "agent-failpoints-masked": Case(partial(crashes.agent_at_failpoints, masks=True)),
    "agent-random": Case(partial(crashes.agent_at_random, masks=False), 2),
    "agent-random-masked": Case(partial(crashes.agent_at_random, masks=True), 2),
    "checkpoint": Case(crashes.checkpoint_writer, 3),
    "disk-failing": Case(surroundings.failing_disk),
    "disk-full": Case(surroundings.full_disk),
    "cuts": Case(partial(network.cuts, masks=False)),
    "cuts-masked": Case(partial(network.cuts, masks=True)),
    "weather": Case(network.weather),
    "straggler": Case(network.straggler),
    "crowd": Case(load.crowd),
    "nobody": Case(load.nobody),
    "clocks": Case(surroundings.clocks),
    "memory": Case(surroundings.little_memory),
}


@dataclass(frozen=True)
class Promise:
    """A promise in a sentence, and what holds it."""

    number: int
    area: str
    says: str
    cases: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()  # in `make test`; `file::test`, or a whole file


_CRASHES, _LINES, _INPUT = "crashes", "network and time", "bad input"
_ATTACKS, _SCALE = "attacks", "scale"
_ADVERSARY = "cloister/benchmarks/test_adversary.py"
_QUICK = "reliability/test_reliability.py"

PROMISES = (
    Promise(
        1, _CRASHES,
        "The server is killed anywhere: within 30 s its run goes on; no round is lost, nothing is charged twice, and "
        "the final model is bit-identical to that of the undisturbed run.",
        ("server-failpoints", "server-failpoints-masked", "server-random", "server-random-masked"),
        (f"{_QUICK}::test_a_server_and_an_agent_are_killed_at_failpoints_and_a_line_is_cut",
         "strategies/test_killed_server.py", "strategies/test_resumed_round.py"),
    ),
    Promise(
        2, _CRASHES,
        "An agent is killed anywhere: its ledger is never below what it released, and at most one charge above.",
        ("agent-failpoints", "agent-failpoints-masked", "agent-random", "agent-random-masked"),
        (f"{_QUICK}::test_a_server_and_an_agent_are_killed_at_failpoints_and_a_line_is_cut",
         "client/test_killed.py", "server/test_processes.py"),
    ),
    Promise(
        3, _CRASHES, "Killed after the ledger's entry, a site sends the very same bytes, under that one charge.", (),
        ("client/test_agent_rounds.py::test_the_same_message_again_gets_the_same_bytes_and_is_charged_once",
         "client/test_agent_rounds.py::test_a_crash_after_the_charge_is_not_charged_again_since_nothing_left",
         "client/state/test_outbox.py"),
    ),
    Promise(
        4, _CRASHES, "Killed after it has sent, a site counts exactly once.", (),
        ("server/hub/test_mailboxes.py::test_the_same_reply_again_gets_the_same_receipt_and_is_handed_over_once",
         "server/hub/test_hub.py::test_the_same_reply_again_gets_the_same_receipt_and_another_is_refused",
         "server/test_dropouts.py"),
    ),
    Promise(
        5, _CRASHES, "Killed while it writes a checkpoint, a site loads the old one or the new one, never a torn one.",
        ("checkpoint",),
        ("client/state/test_checkpoint.py::test_a_write_that_fails_leaves_the_round_before",
         "client/state/test_averaged.py::test_a_crash_between_the_two_files_changes_nothing",
         "client/state/test_residuals.py::test_a_crash_between_settling_a_residual_and_saving_the_model_changes_nothing"),
    ),
    Promise(
        6, _CRASHES,
        "A disk is full, fails, or does not sync, or there is little memory: no update leaves that is not charged, and "
        "a sentence says why; once there is room, the run goes on.",
        ("disk-failing", "disk-full", "memory"),
        ("privacy/ledger/test_ledger_file.py",
         "client/round/test_readiness.py::test_a_disk_that_fails_while_a_site_trains_leaves_no_half_file_and_costs_no_second_charge",
         "client/round/test_readiness.py::test_a_ledger_that_cannot_be_written_is_reported_before_a_round_is_planned",
         "client/state/test_commitments.py::test_a_full_disk_prevents_the_action"),
    ),
    Promise(
        7, _CRASHES,
        "A checkpoint that is damaged at any byte is noticed and named, never used; the site rebuilds the model from "
        "the sums.", (),
        ("client/state/test_checkpoint.py::test_one_bit_that_changed_among_the_values_is_noticed",
         "client/state/test_checkpoint.py::test_a_damaged_file_is_named_with_what_to_do",
         "client/test_agent_sums.py::test_a_damaged_checkpoint_is_reported_at_the_site_and_refused",
         "client/state/test_averaged.py::test_a_site_that_lost_its_models_rebuilds_the_same_bits_from_the_sums"),
    ),
    Promise(
        8, _CRASHES, "An older copy of a ledger is refused.", (),
        ("privacy/ledger/test_ledger_head.py", "strategies/test_old_ledgers.py"),
    ),
    Promise(
        9, _LINES,
        "A line is cut at any point, garbled, doubled, slow, or silent: within 60 s the round is over, with every "
        "update in it once.",
        ("cuts", "cuts-masked", "weather"),
        (f"{_QUICK}::test_a_server_and_an_agent_are_killed_at_failpoints_and_a_line_is_cut",
         "client/test_agent.py::test_an_agent_comes_back_when_the_server_does_and_sends_the_update_that_it_had_made",
         "server/test_dropouts.py::test_no_byte_of_an_update_is_sent_twice"),
    ),
    Promise(
        10, _LINES, "A round closes at its deadline without a straggler, whose late update is not taken.",
        ("straggler",),
        ("transport/test_grids.py::test_a_reply_after_the_deadline_is_dropped_and_does_not_disturb_what_follows",
         "client/test_agent.py::test_a_reply_that_comes_too_late_does_not_end_the_agent",
         "server/test_processes.py::test_a_round_in_which_an_agent_is_killed_closes_at_its_deadline_with_the_others"),
    ),
    Promise(
        11, _LINES, "Below the minimum cohort nothing is released, the model stays, and the event says so.", (),
        ("server/test_processes.py::test_a_round_in_which_too_few_are_left_releases_nothing",
         "strategies/test_forgeries.py::test_below_the_minimum_nothing_is_released_and_no_model_is_written",
         "privacy/crypto/test_summation.py::test_below_the_minimum_nothing_is_released"),
    ),
    Promise(
        12, _LINES,
        "Beside 500 idle connections and 200 that send a kilobyte a second, an honest round takes less than twice its "
        "time.",
        ("crowd",),
        ("server/hub/test_hub_memory.py::test_two_hundred_silent_connections_block_no_member",
         "server/hub/test_hub_memory.py::test_a_member_that_stalls_many_bodies_does_not_block_another"),
    ),
    Promise(
        13, _LINES, "A site whose clock is off by ten minutes takes no part, and is told both times; the others go on.",
        ("clocks",),
        ("privacy/run/test_clocks.py",
         "strategies/test_stopping.py::test_a_site_whose_clock_disagrees_is_left_out_by_name_and_the_others_go_on",
         "client/round/test_readiness.py::test_a_site_whose_clock_is_a_little_off_takes_part"),
    ),
    Promise(
        14, _LINES, "No wait is without a deadline.", (),
        ("reliability/test_waits.py",
         "transport/test_grids.py::test_nobody_waits_longer_than_the_deadline_for_a_node_that_does_not_answer",
         "transport/test_channel.py::test_an_agent_does_not_wait_for_a_silent_server",
         "strategies/test_attention.py::test_a_site_that_never_answers_costs_one_deadline_in_a_whole_run"),
    ),
    Promise(
        15, _INPUT, "An update with any flipped bit is refused.", (),
        ("privacy/codec/test_envelope.py::test_any_flipped_bit_is_refused",
         "privacy/crypto/test_false_sums.py::test_a_sum_with_a_flipped_bit_is_not_decrypted"),
    ),
    Promise(
        16, _INPUT, "NaN, ±∞, subnormal and huge values are refused or clipped.", (),
        ("privacy/codec/test_packing.py::test_values_that_are_not_finite_are_refused_at_both_steps",
         "privacy/codec/test_packing.py::test_subnormal_and_huge_values_are_only_clipped",
         "client/test_holes_of_training.py::test_a_record_whose_gradient_is_not_finite_counts_as_zero",
         "client/state/test_local_parameters.py::test_values_that_are_not_finite_are_refused"),
    ),
    Promise(
        17, _INPUT, "Another shape, type or key is refused, and so is a shape that could be broadcast.", (),
        ("privacy/crypto/test_summation.py::test_the_sum_refuses_a_model_with_other_tensors_or_another_range",
         "privacy/codec/test_update.py::test_other_names_shapes_or_order_have_another_digest",
         "client/state/test_initial_model.py::test_other_tensors_are_refused",
         "strategies/test_forgeries.py::test_an_update_of_a_model_with_other_tensors_is_refused"),
    ),
    Promise(
        18, _INPUT, "A weight that is negative, zero, huge or no number is refused.", (),
        ("privacy/codec/test_packing.py::test_a_weight_beyond_the_manifests_range_is_refused",
         "privacy/codec/test_packing.py::test_a_bound_or_weight_that_float32_cannot_hold_is_refused",
         "privacy/codec/test_envelope.py::test_a_genuine_header_of_another_form_is_malformed"),
    ),
    Promise(
        19, _INPUT, "300 MB from nobody cost the server at most 16 MB of memory, and no round.",
        ("nobody",),
        ("server/hub/test_hub.py::test_callers_without_a_valid_certificate_are_refused_before_they_send_anything",
         "server/hub/test_hub_memory.py",
         "server/hub/test_signing_in.py::test_nothing_of_a_stranger_is_parsed",
         "transport/test_framing.py::test_a_message_over_the_limit_is_refused_at_its_announcement"),
    ),
    Promise(
        20, _INPUT, "Any bytes are parsed or refused in our words, in little memory.", (),
        ("fuzz/test_parsers.py", "transport/test_parcel.py", "transport/test_run_messages.py"),
    ),
    Promise(
        21, _INPUT, "A pickle in place of any file runs no code; nothing of ours reads one.", (),
        ("client/test_holes.py::test_a_pickle_in_place_of_a_checkpoint_is_refused_and_not_run",
         "client/test_holes.py::test_no_code_of_ours_reads_pickles",
         "client/state/test_initial_model.py::test_an_incomplete_safetensors_file_is_refused_and_never_unpickled"),
    ),
    Promise(
        22, _ATTACKS, "An update replayed with another run, round or site is refused.", (),
        ("privacy/codec/test_envelope.py::test_an_update_replayed_under_another_plan_is_refused",
         "strategies/test_forgeries.py::test_a_replayed_update_of_another_site_is_refused",
         "strategies/test_forgeries.py::test_an_update_of_an_earlier_round_is_refused_in_the_next",
         "strategies/test_forgeries.py::test_an_update_of_another_run_is_refused"),
    ),
    Promise(
        23, _ATTACKS, "Of two different updates for one round, a site makes one and the server takes one.", (),
        ("client/test_agent_rounds.py::test_another_plan_for_the_same_attempt_is_refused",
         "server/hub/test_mailboxes.py::test_another_reply_to_the_same_message_is_refused",
         "privacy/crypto/test_summation.py::test_the_sum_refuses_a_second_update_of_one_site_and_stays_as_it_was",
         _ADVERSARY),
    ),
    Promise(
        24, _ATTACKS, "An old key epoch and an old roster are refused.", (),
        ("client/round/test_key_epochs.py", "client/test_rosters.py", _ADVERSARY),
    ),
    Promise(
        25, _ATTACKS, "If the server substitutes a key, no site seals to it.", (),
        ("privacy/crypto/test_key_epoch.py::test_keys_sealed_to_a_substituted_recipient_key_do_not_open",
         "privacy/run/test_roster.py::test_only_the_authority_can_sign_one", _ADVERSARY),
    ),
    Promise(
        26, _ATTACKS, "If the server returns one site's update as the sum, doubles or omits one, no site opens it.", (),
        ("privacy/crypto/test_false_sums.py", "privacy/crypto/test_mac_forgeries.py", _ADVERSARY),
    ),
    Promise(
        27, _ATTACKS, "Different models at two sites are noticed before they train.", (),
        ("strategies/test_one_model.py",),
    ),
    Promise(
        28, _ATTACKS, "A run that a site has not approved, or whose signature or code it does not know, is refused.",
        (), ("client/round/test_consent.py", "privacy/run/test_policy.py", "privacy/run/test_people.py"),
    ),
    Promise(
        29, _ATTACKS, "Who is expired, revoked, of another authority, or reuses an invitation is out within 5 s.", (),
        ("server/test_roster_watch.py", "transport/test_channel.py::test_a_server_of_another_consortium_is_refused",
         "transport/test_channel.py::test_a_site_whose_certificate_has_expired_gets_the_reason",
         "cloister/commands/test_joining.py::test_an_invitation_works_once"),
    ),
    Promise(
        30, _ATTACKS, "A ledger that was edited, cut, reordered or forked is found, at its first wrong line.", (),
        ("privacy/ledger/test_ledger.py",
         "cloister/commands/test_ledger.py::test_a_whole_ledger_is_verified_and_any_other_ends_with_the_reason"),
    ),
    Promise(
        31, _ATTACKS, "The server's disk holds no key and no update in the clear.", (),
        ("server/test_processes.py::test_nothing_that_the_server_wrote_holds_a_piece_of_a_sites_key",
         "server/test_processes.py::test_nothing_that_the_server_wrote_holds_a_weight_of_a_model_or_an_update",
         "server/test_processes.py::test_the_servers_process_has_loaded_nothing_that_trains_or_decrypts"),
    ),
    Promise(
        32, _ATTACKS, "Without its passphrase, a copy of a site's disk shows no record and no key.", (),
        ("client/test_protected_site.py",),
    ),
    Promise(
        33, _SCALE, "Many sites train one model; a model too large for a site's memory is refused before a charge.", (),
        ("simulations/engine/test_many_sites.py", "cloister/benchmarks/test_scale.py",
         "client/round/test_readiness.py::test_a_model_whose_step_does_not_fit_in_memory_is_a_refusal_before_any_charge"),
    ),
    Promise(
        34, _SCALE, "Another version works, or is refused by its number; a backup restores, and no charge is lost.", (),
        ("transport/test_framing.py::test_another_protocol_is_refused_by_its_number", "privacy/test_vectors.py",
         "client/test_backup.py", "client/test_killed_at_rest.py"),
    ),
)  # fmt: skip
