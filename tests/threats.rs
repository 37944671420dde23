//! What an attacker may try, what stands against it, and the tests that show it. An attacker is
//! a web page in somebody's browser, a machine of the LAN, or the internet.
//!
//! | threat | what stands against it | tests |
//! |---|---|---|
//! | a page whose name is rebound to this machine | only names of this machine in `Host`, at every proxy | `threats/pages::a_rebound_name_reaches_no_ollama` `status::pages_of_other_sites_and_foreign_names_get_nothing` |
//! | requests of other sites' pages | `Origin` as Ollama judges it, `Sec-Fetch-Site`; refused before they are worked on | `threats/pages::a_page_of_another_site_changes_nothing` `origins::foreign_pages_are_refused_before_ollama_hears_of_them` `origins::preflights_are_answered_where_they_arrive` `ordinary/away::no_page_and_no_other_machine_makes_it_forget` |
//! | the page's button that unloads models, pressed by other sites' pages or other machines | programs of this machine alone; `Origin` and `Sec-Fetch-Site` of our page; a token of this start, which only it can read, compared in constant time | `threats/unload::only_our_page_unloads_models` `threats/unload::no_other_machine_unloads_models` `status::the_page_unloads_models_where_they_are` |
//! | a rogue server: steals prompts, returns malicious tool calls | announcements only propose; whoever has a known name without its identity is held back, and a newcomer's boasts count for nothing; with keys, nobody without one is talked to | `discovery::an_announcement_only_proposes` `netns/impostor::another_machine_in_the_name_of_a_known_server_gets_no_prompts` `src/manager/pool/trust/tests::what_is_known_outlives_a_restart` `src/manager/pool/trust/tests::a_copied_identity_gets_nothing_beside_the_original` `src/manager/pool/trust/tests::a_forged_announcement_changes_nothing_about_a_server` `src/manager/pool/trust/tests::a_newcomer_wins_nothing_by_what_it_says` `src/manager/pool/away/tests::strangers_that_come_and_go_are_soon_forgotten` `keyed_discovery::only_answers_with_the_key_are_believed` `pairing::a_paired_client_uses_no_server_without_the_key` `pairing::what_is_changed_on_the_way_is_never_taken_for_an_answer` `netns/paired::a_rogue_server_is_not_used` |
//! | a rogue client: deletes, pulls, creates, uses the account | other machines get what is known to be harmless, by exact paths | `threats/machines::another_machine_uses_models_and_changes_none` `threats/machines::another_machine_is_led_to_the_paths_that_ollama_has` `src/access/permissions/tests::no_other_spelling_of_a_closed_path_is_open` `netns/policy::another_machine_uses_models_and_changes_nothing` `netns/policy::pull_on_opens_ollamas_registry_alone` `netns/paired::a_rogue_client_gets_nothing` |
//! | tokens of devices without ollana: guessed, stolen from the disk, used for more, passed on to Ollama's cloud or another machine | 128 random bits, of which hashes are kept and compared in constant time; an address waits after ten wrong ones; inference and lists alone, from addresses that may connect; taken out of what is passed on | `threats/tokens::a_token_opens_a_closed_server_to_inference_and_lists` `threats/tokens::wrong_tokens_are_refused_and_soon_not_looked_at` `threats/tokens::no_token_leaves_the_proxy` `threats/tokens::tokens_are_made_listed_and_removed` `src/pairing/tokens::tokens_are_kept_as_hashes_for_nobody_else` `src/pairing/tokens::guessing_is_slow_and_holds_up_nobody_else` |
//! | whoever asks a server for files: other blobs, other folders, what was made here, all of its bandwidth | only digests that a model names, opened without links; strict names; two at once, and who takes next to nothing gives way; what was made here for paired machines | `src/library/tests::nothing_leads_out_of_the_store` `src/library/tests::manifests_of_nonsense_name_nothing` `src/library/tests::names_of_blobs_are_strict` `ordinary/donor::whatever_is_asked_for_is_the_blob_or_nothing` `ordinary/donor::two_get_blobs_at_once_and_more_come_back` `src/proxy/exchange/donations::who_is_slow_gives_his_place_to_another` `netns/policy::models_are_given_as_their_owner_says` |
//! | a false donor: says that it has every layer, and gives other bytes, too few of them, or none | a layer is hashed before Ollama gets the last of it, so that nothing of a wrong one stays; who gave wrong bytes, or next to none, isn't asked again for ten minutes; the registry goes on where it was | `ordinary/pulls::wrong_bytes_are_left_to_the_registry` `ordinary/pulls::a_neighbour_that_is_too_slow_is_left` `src/sharing/tests::wrong_bytes_do_not_come_to_their_end` `src/sharing/tests::ollama_sees_a_body_that_is_cut_short` |
//! | `ollana cp`: a false manifest, a copy that a stranger wants of this machine or forces on it, names that lead elsewhere, what Ollama pushes | manifests go between paired machines alone, and only they may have a copy made; strict names; layers by digest; registries of a moment, at this machine, under names with 128 random bits | `ordinary/copies::wrong_bytes_leave_nothing_behind` `ordinary/copies::names_are_taken_as_ollama_takes_them` `ordinary/copies::what_can_not_be_copied_is_told` `ordinary/copies::other_machines_may_where_they_may_manage_models` `ordinary/pushes::only_paired_machines_and_own_programs_get_them` `ordinary/pushes::a_push_of_nonsense_is_no_model` `src/sharing/registry::it_has_the_one_manifest_and_nothing_else` `netns/copies::models_go_from_machine_to_machine` |
//! | probes with a forged source | answers are no longer than probes, few for each source, none off the link | `threats/discovery::a_forged_source_gets_less_than_was_sent` `discovery::whatever_is_no_probe_gets_nothing` `netns/hostile::old_probes_get_old_answers_and_strangers_none` `netns/hostile::a_flood_of_probes_does_not_hide_an_honest_one` |
//! | a server whose lists make a client forget the others at its next start | entries of a bounded depth; one server a line, in which its lists are as long as it wrote them; a line that can't be read costs no other | `ordinary/away::odd_entries_of_one_server_make_no_other_forgotten` `src/manager/store/tests::lists_are_kept_as_a_server_writes_them` `src/manager/store/tests::a_line_that_can_not_be_read_costs_no_other` `src/ollama/list_reader::entries_of_any_depth_are_read_or_counted` |
//! | a flood of servers that don't exist | nonces; 64 servers, 8 checks at once; known ones are kept | `threats/discovery::a_flood_of_servers_displaces_nobody` `src/manager/pool/away/tests::strangers_displace_nobody_and_take_little_room` `discovery::an_announcement_counts_only_for_one_of_the_last_probes` `netns/hostile::forged_announcements_reach_nobody` `netns/hostile::servers_that_refuse_do_not_displace_the_known_one` `netns/hostile::servers_that_stay_silent_do_not_displace_the_known_one` |
//! | smuggling, of requests and of answers | what two readers could take differently is refused; the rest is written anew; no connection is used again after a doubt | `malformed::ambiguous_heads_reach_nobody` `threats/framing::chunks_hide_no_request` `threats/framing::answers_hide_no_answer` `threats/framing::what_comes_late_is_no_answer` `answers::bytes_behind_an_answer_are_no_answer` `tiny_http::k7_nobody_reads_two_requests_into_one` |
//! | slow heads, bodies, readers | deadlines for each; an inference counts towards a server's limit once its body is here; no address may have more places than it leaves free; when all are taken, what is idle or drips gives way | `bounds::a_slow_head_is_cut` `bounds::a_body_that_stops_coming_is_given_up` `bounds::a_reader_that_stalls_is_cut` `bounds::connections_over_the_limit_are_told` `src/proxy/connections::whoever_takes_all_he_can_get_leaves_room_for_others` `src/proxy/connections::a_body_that_drips_gives_way_where_all_have_requests` `faults::twelve_addresses_that_take_all_places_with_bodies_that_drip` `faults::five_hundred_slow_heads_bodies_and_readers` `queue::a_body_that_comes_slowly_takes_no_turn` `queue::a_body_that_is_too_large_to_be_kept_and_slow_loses_its_turn` |
//! | all places of a paired server, taken so that it answers in clear and looks as if it knew no keys | only a 400 tells that; nothing else is remembered, nor followed by a request in clear | `pairing::a_full_server_is_told_as_such_and_gets_nothing_in_clear` `src/pairing/secure/tests::a_server_that_is_full_is_not_taken_for_one_without_handshakes` |
//! | huge heads and lengths, from either side | limits; a length is only a number | `bounds::heads_of_any_size_up_to_the_limit` `tiny_http::k2_a_declared_length_is_only_a_number` `threats/framing::a_declared_length_takes_no_memory` `threats/framing::an_upstream_that_says_too_much_takes_no_memory` |
//! | absolute targets, CONNECT, Upgrade | refused, or passed over; no target names another host | `threats/framing::targets_lead_to_our_own_servers_alone` `malformed::ambiguous_heads_reach_nobody` `requests::an_offer_of_http_2_is_passed_over` |
//! | injection into logs, terminals, the page | escaped and cut where it comes in | `threats/injection::what_servers_say_harms_no_log_and_no_terminal` `threats/injection::errors_tell_programs_nothing_harmful` `threats/injection::the_page_makes_no_markup_of_names` `logs::json_lines_hold_whatever_was_sent` `logs::prompts_and_long_values_stay_out_of_the_log` |
//! | the internet reaches a server | closed before a byte is read, unless the peer is of a local network | `threats/machines::the_internet_gets_not_a_byte` `src/access/addresses::deny_wins_and_allow_replaces_the_usual` `netns/policy::allow_and_deny_decide_who_connects` |
//! | redirects | passed on, never followed; our own lead to known paths of the same host | `src/ollama/endpoints/routes::no_redirect_leaves_this_host` `threats/ways::a_redirect_leads_nowhere` `answers::a_redirect_is_passed_on` |
//! | proxies that the environment names | never used | `threats/ways::proxies_of_the_environment_see_nothing` |
//! | a loop through ourselves | `Via` tells: 508 after one round | `threats/ways::a_loop_through_a_stranger_ends_after_one_round` `bounds::a_request_that_comes_back_is_refused_at_once` `bounds::proxies_that_lead_to_themselves_are_never_ready` |
//!
//! Tests are named by their file, below `tests/` unless it says `src/`. Those of `netns` need root.

mod support;

use support::{assert_is_there, tests_of};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The rows' tests, and an upstream that they share.
mod threats {
    use super::OK;

    mod discovery;
    mod framing;
    mod injection;
    #[cfg(target_os = "linux")]
    mod machines;
    mod pages;
    mod rogue;
    #[cfg(target_os = "linux")]
    mod tokens;
    mod unload;
    mod ways;
}

#[test]
fn the_table_names_tests_that_exist_and_all_of_this_suite() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = include_str!("threats.rs").lines().filter(|line| line.starts_with("//! | "));
    let mut named = std::collections::BTreeSet::new();
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.split(" | ").collect();
        assert_eq!(cells.len(), 4, "{row}");
        let tests: Vec<&str> = cells[3].split('`').filter(|word| word.contains("::")).collect();
        assert!(!tests.is_empty(), "nothing shows it: {row}");
        named.extend(tests);
    }
    named.iter().for_each(|test| assert_is_there(test));
    for entry in std::fs::read_dir(root.join("tests/threats")).expect("the suite") {
        let path = entry.expect("a file").path();
        let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
        for name in tests_of(&path) {
            let test = format!("threats/{file}::{name}");
            assert!(named.contains(&*test), "{test} is in no row");
        }
    }
}
