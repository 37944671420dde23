#!/bin/sh
# The fault matrix: what is injected, what must be seen and within what time, what was measured.
# Runs the tests that inject each fault and puts their figures into one table; fails if one of
# them did, or took longer than the limit. `make faults` runs it; those in network namespaces need
# root, ip and nft. On a slow or busy machine: SLACK=2 make faults.
set -eu
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
slack=${SLACK:-1}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fault | tests, all of which must pass | text of the lines whose largest figure is shown
rows='
server killed in mid-stream: an explicit error|a_stream_that_breaks_off_is_an_error|killed mid-stream
killed before the first byte: inference elsewhere|an_answer_that_has_not_begun_comes_from_another_server|killed before the first byte
the same for what must not be repeated: 502, once|what_must_not_be_repeated_fails_once|killed while uploading
connect refused: next server|requests_move_to_the_other_server|killed, next request answered
SYN swallowed: next server|a_server_that_swallows_connections_is_passed_over|swallowed to the next
stale pooled connection: invisible|a_connection_that_goes_stale_as_it_is_used,an_ollama_that_restarts_between_two_requests|
old connection to a vanished server: rescued|a_request_on_an_old_connection_to_a_vanished_server_is_rescued|vanished
an Ollama that stays silent: no limit|a_long_silence_of_the_ollama_is_no_matter|
power cut in mid-stream: an error|a_power_cut_ends_requests_in_an_error|power cut to the
a client loses power: Ollama is freed|a_client_that_loses_power_frees_ollama|power cut to Ollama
SIGSTOP: out of rotation, its stream kept|a_frozen_server_loses_new_requests_and_keeps_its_stream|out of rotation
partition and heal: back in use|a_partition_heals|healed to first answer
the server has a new address: used, one entry|a_servers_new_address_is_used|address
Ollama stops and starts behind its server|ollama_stops_and_starts_behind_its_server|Ollama
hang-up while waiting: Ollama closed|while_waiting_for_the_first_token|hang-up while
hang-up while streaming: Ollama closed|while_streaming|hang-up while
hang-up while uploading: Ollama closed|netns::hangup::while_uploading|hang-up while
1,000 streams: every byte there|a_thousand_streams_at_once|
EMFILE for 10 s: serving at once afterwards|no_descriptors_for_ten_seconds|EMFILE over
no thread can be started: 503, then serving|no_thread_can_be_started|RLIMIT_NPROC 30, all gone
no address space for a thread: the same|no_address_space_for_a_thread|address space over
RLIMIT_AS 128 MB, 500 connections: 503, serving|an_eighth_of_a_gigabyte_for_500_connections|RLIMIT_AS 128 MB, all gone
twelve addresses take all places: honest served|twelve_addresses_that_take_all_places,twelve_addresses_that_take_all_places_with_bodies_that_drip,a_crowd_of_addresses_locks_nobody_out|crowded by twelve
500 slow heads, bodies and readers: new request|five_hundred_slow_heads_bodies_and_readers|slowest of 10 new requests
slow bodies: others have turns at the server|a_body_that_comes_slowly_takes_no_turn,a_body_that_is_too_large_to_be_kept_and_slow_loses_its_turn|beside slow bodies
slow newcomers: a frozen server is noticed|slow_newcomers_do_not_hide_that_a_server_is_frozen,slow_newcomers_do_not_hide_that_a_named_server_is_frozen|out of rotation
a newcomer among 500 forged ones: found|servers_that_refuse_do_not_displace_the_known_one,servers_that_stay_silent_do_not_displace_the_known_one|start to in rotation
10,000 forged announcements: known one kept|forged_announcements_reach_nobody|
announced servers refuse or stay silent: kept|servers_that_refuse_do_not_displace_the_known_one,servers_that_stay_silent_do_not_displace_the_known_one|in rotation
spoofed probes: an honest one answered|a_flood_of_probes_does_not_hide_an_honest_one|honest probe
SIGTERM with 100 streams: none lost|sigterm_with_a_hundred_streams,streams_finish_and_nobody_new_comes_in|SIGTERM,
drain over: cut, unclean; second signal at once|a_stream_that_takes_too_long_is_cut,a_second_signal_ends_it_at_once|
goodbye: out of rotation|a_server_that_stops_says_goodbye_and_finishes_its_streams|SIGTERM to out of rotation
clock +10 and -10 years: nothing changes|the_clock_jumps|clock
log disk full, stderr closed: no request waits|a_log_that_cannot_be_written|slowest of 200
log reader stalled or gone: no request waits|a_log_that_nobody_reads_stalls_no_request,nobody_reads_its_log|
port taken: exit, names port and holder|the_port_is_taken,a_port_that_is_taken_is_named_with_a_way_out|port taken
self-loop: 508, never ready|a_request_that_comes_back_is_refused_at_once,proxies_that_lead_to_themselves_are_never_ready|
two NICs: one entry|two_ways_to_one_server_are_one_entry|one way lost
flapping at 1 Hz: one line per edge, then back|a_flapping_server_is_one_entry_and_one_line_per_edge|flapping ended
RST storm of 8,000: serving|a_storm_of_resets|slowest request
a state directory that never answers: refused, said|a_state_directory_that_never_answers,a_state_directory_that_answers_no_longer|SIGTERM to the end
pairing killed at each message: a key works|pairing_that_is_killed_leaves_what_was_before,pairing_again_that_is_killed_leaves_the_old_key|
keys gone with their folder or all state: no start|without_its_keys_a_paired_machine_does_not_talk|
planted links: root is led nowhere|planted_links_lead_root_nowhere,root_is_led_nowhere_by_a_log_or_a_pid_file|
dead name servers: other servers answer|dead_name_servers_hold_up_neither_requests_nor_the_end|dead name servers, to the first answer
a known name is not answered: its server stays|a_server_stays_when_its_name_is_not_answered_any_more|answer of its server
the same for Ollama here: the role|a_local_ollama_by_a_dead_name_holds_up_neither_role_nor_end|to the role
SIGTERM beside dead names and checks that hang|dead_name_servers_hold_up_neither_requests_nor_the_end,checks_that_hang_do_not_hold_up_the_end,a_local_ollama_by_a_dead_name_holds_up_neither_role_nor_end|SIGTERM beside
SIGTERM beside half a request: not waited for|half_a_request_is_not_waited_for|
SIGTERM while Ollama is waited for at boot|a_machine_that_boots_and_stops_starts_no_client|SIGTERM while Ollama
100 changes of role: no thread, no descriptor|a_hundred_changes_of_role_leave_nothing_behind|changes of role
an Ollama that comes and goes: the same|an_ollama_that_comes_and_goes_leaves_nothing_behind|to the other role
a start that fails half-way: ports are free|a_start_that_fails_half_way_gives_everything_back,a_start_that_runs_out_of_descriptors_gives_everything_back,a_process_that_runs_out_of_descriptors_says_so_and_leaves_nothing|
a donor dies or crawls: the next, or the registry|the_next_neighbour_goes_on_where_one_died,where_nobody_is_left_the_registry_goes_on,a_neighbour_that_is_too_slow_is_left|
a donor lies, or Ollama refuses: the registry|wrong_bytes_are_left_to_the_registry,an_ollama_that_does_not_take_it_gets_it_from_the_registry|
the client of a pull leaves: both sides closed|a_client_that_leaves_ends_both_sides|client leaves a pull
a disk too full for a model: told before it comes|a_full_disk_is_told_before_anything_is_sent|
a panic in a vital thread: exit code 70|a_panic_in_a_vital_thread_ends_the_process|a panic in
misbehaviour at random on both sides: none lost|whatever_both_sides_do,whatever_two_servers_do|
'
# What loads this machine runs alone.
$cargo test --release --no-fail-fast --test faults -- --nocapture --test-threads 1 >"$log" 2>&1 || true
$cargo test --release --no-fail-fast --lib -- --nocapture planted led_nowhere >>"$log" 2>&1 || true
$cargo test --release --no-fail-fast --test netns --test stop --test start --test stale --test bounds \
    --test load --test chaos --test pair --test queue -- --nocapture --test-threads 2 >>"$log" 2>&1 || true
$cargo test --release --no-fail-fast --test ordinary ordinary::pulls -- --nocapture --test-threads 2 \
    >>"$log" 2>&1 || true

# Panics are planted in builds for tests only.
$cargo test --test faults a_panic_in -- --nocapture >>"$log" 2>&1 || true

printf '%-49s%12s%12s  %s\n' "fault: what must be seen" "measured ms" "limit ms" verdict
echo "$rows" | awk -F'|' -v log_file="$log" -v slack="$slack" '
    BEGIN {
        while ((getline line < log_file) > 0) {
            if (match(line, /test [a-z_:0-9]+ \.\.\. (ok|FAILED|ignored)/)) {
                split(substr(line, RSTART, RLENGTH), word, " ")
                name = word[2]
                verdict[name] = word[4]
                sub(/.*::/, "", name)
                verdict[name] = word[4]
            }
            # One at a time, the verdict follows what the test printed.
            if (match(line, /^test [a-z_:0-9]+ \.\.\./)) {
                split(line, word, " ")
                present = word[2]
                sub(/.*::/, "", present)
            }
            if (line == "ok" || line == "FAILED") verdict[present] = line
            if (match(line, /[0-9]+ ms \(limit [0-9]+ ms\)/)) {
                count++
                split(substr(line, RSTART, RLENGTH), word, " ")
                said[count] = line; took[count] = word[1]; limit[count] = word[4]
                whose[count] = substr(line, 1, index(line, ": ") - 1)
            }
        }
    }
    NF < 3 { next }
    {
        rows++
        number = split($2, tests, ",")
        result = "ok"; worst = -1; bound = ""
        for (t = 1; t <= number; t++) {
            if (verdict[tests[t]] != "ok") result = tests[t] " " (verdict[tests[t]] ? verdict[tests[t]] : "did not run")
            for (n = 1; n <= count; n++) {
                hit = 0
                for (p = 3; p <= NF; p++) if ($p != "" && index(said[n], $p)) hit = 1
                short = tests[t]
                sub(/^netns::/, "", short)
                mine = index(whose[n], short) || whose[n] == "fault"
                if ($3 == "" && whose[n] != "fault") hit = 1
                if (hit && mine && took[n] + 0 > worst) { worst = took[n] + 0; bound = limit[n] }
            }
        }
        if (result == "ok" && worst > slack * bound) result = "too slow"
        if (result != "ok") bad++
        printf "%-49s%12s%12s  %s\n", $1, (worst < 0 ? "-" : worst), bound, result
    }
    END { printf "%d rows, %d bad; a request that is lost fails its test\n", rows, bad; exit bad > 0 }
' && status=0 || status=$?
grep -E "^fault: skipped|panicked" "$log" | sort -u || true
exit "$status"
