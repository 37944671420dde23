//! What README.md says, and the tests that go red when it becomes false. A claim that is not in this
//! table is an error, and so is a row that README.md does not say any more.
//!
//! # What it is
//!
//! | README.md | tests |
//! |---|---|
//! | Ollama over LAN | `netns/basics::clients_find_the_server_and_stream` |
//! | every machine of a home or an office, of which one or more have | `netns/basics::clients_find_the_server_and_stream` `netns/models::three_servers_with_different_models_are_one` |
//! | uses their models as if they were local | `netns/basics::clients_find_the_server_and_stream` `scripts/e2e.sh::check_program python` |
//! | There is nothing to configure | `netns/basics::clients_find_the_server_and_stream` |
//! | finds the servers by UDP broadcast and answers on Ollama's own port | `netns/basics::clients_find_the_server_and_stream` `netns/doctor::a_network_that_works_is_well` |
//! | UDP 11436► | `netns/doctor::a_network_that_works_is_well` `docs::ollana_is_ready_with_the_lines_of_the_readme` |
//! | Every Ollama program works unmodified | `scripts/e2e.sh::check_cli` `scripts/e2e.sh::check_program python` `scripts/e2e.sh::check_program node` |
//! | passes on methods, paths, query strings | `requests::methods_with_and_without_bodies` `requests::targets_byte_for_byte` |
//! | status codes, bodies and end-to-end headers as they are | `answers::any_status_passes` `requests::bodies_in_the_framing_they_came_in` `requests::fields_in_order_whatever_their_values` `answers::what_ollama_answers_arrives_as_it_is` `differential::the_daemons_change_nothing_that_is_not_theirs` |
//! | with a real Ollama and the official clients | `Makefile::scripts/e2e.sh` `scripts/e2e.sh::start_ollama a` `scripts/e2e.sh::check_program python` |
//! | Answers stream token by token | `streaming::each_token_arrives_before_the_next_one_exists` `netns/basics::clients_find_the_server_and_stream` |
//! | each piece of an answer before it reads the next one | `streaming::each_token_arrives_before_the_next_one_exists` |
//! | Ollama hears of it within a fraction of a second | `cancel::between_two_tokens` `cancel::while_waiting_for_the_first_byte` `netns/hangup::while_streaming` |
//! | A request ends with a whole answer, with an error in the shape of the API | `chaos::whatever_both_sides_do` `simulation::every_seed_is_safe_and_lively` `src/ollama/errors::each_path_gets_its_apis_shape` |
//! | a connection that is visibly cut | `failure::every_stream_of_ollamas_ends_in_an_error` `failure::a_reset_ends_even_what_has_no_framing_in_a_failure` |
//! | dies before its answer begins, another server gets the request | `failover::inference_moves_on_from_a_server_that_dies_before_its_first_byte` `failover::all_inference_may_be_asked_for_again` |
//! | unless the request changes models | `failover::never_twice_means_never` `src/ollama/endpoints/tests::only_reads_and_inference_are_sent_twice` |
//! | `ollama list` shows the models of all servers | `netns/models::three_servers_with_different_models_are_one` `scripts/e2e/two.sh::ollama list has each model once` |
//! | each request goes to a server that has its model | `ordinary/about::every_request_reaches_the_owner_of_its_model` `netns/models::three_servers_with_different_models_are_one` |
//! | checks servers that are up each second | `src/manager/pool/tests::silence_needs_two_checks_a_refusal_one` `src/cli/tests::defaults_are_what_the_help_says` |
//! | so servers may come and go | `netns/basics::a_killed_server_is_used_again_when_it_is_back` `netns/failover::requests_move_to_the_other_server` |
//! | No model is downloaded twice in one house | `ordinary/pulls::layers_of_the_house_come_from_there` |
//! | A pull takes the large layers that another machine has from there | `ordinary/pulls::layers_of_the_house_come_from_there` `scripts/e2e/share.sh::the registry gave next to nothing` |
//! | Ollama checks that they are right | `ordinary/pulls::wrong_bytes_are_left_to_the_registry` |
//! | One command makes it private | `netns/paired::two_commands_hide_what_is_said` |
//! | encrypts requests and answers | `pairing::nothing_that_is_said_is_on_the_wire` |
//! | One binary of at most 4.0 MB on Linux | `docs::versions_and_sizes_agree` `scripts/dist.sh::more than $budget` |
//! | no central server | `netns/basics::clients_find_the_server_and_stream` `netns/sharing::machines_share_and_use_each_others_ollama` |
//!
//! # Try it
//!
//! | README.md | tests |
//! |---|---|
//! | Two commands work on a fresh machine | `scripts/boot/commands.sh::"make run" "make test"` |
//! | 1.89 or newer | `docs::versions_and_sizes_agree` |
//! | `apt install gcc make` on Debian | `scripts/boot/commands.sh::apt install` |
//! | make run # builds ollana and shows a chat through a client and a server | `docs::make_run_shows_what_the_readme_shows` `scripts/boot/commands.sh::make run` |
//! | make test # runs the tests | `docs::commands_topics_and_targets_exist` `scripts/boot/commands.sh::make test` |
//! | `make run` shows this | `docs::make_run_shows_what_the_readme_shows` |
//! | a stand-in for Ollama listens on | `docs::make_run_shows_what_the_readme_shows` |
//!
//! # Install
//!
//! | README.md | tests |
//! |---|---|
//! | Linux with systemd, OpenRC or SysV scripts | `service/command::root_has_systemd_start_it` `service/command::openrc_starts_it_as_a_user_of_its_own` `service/command::a_sysv_script_starts_and_stops_it` |
//! | a service that starts at every boot | `scripts/boot/checks.py::the service is back by itself` |
//! | The script says what it will do, and asks | `service/release::a_release_says_what_it_will_do_and_asks` `scripts/boot/checks.py::install.sh asks` |
//! | make deb on another one | `service/release::packages_of_a_commit_are_equal` `scripts/boot/checks.py::dpkg -i` |
//! | says whether everything works | `scripts/boot/checks.py::all is well` `netns/doctor::a_network_that_works_is_well` |
//! | removes everything but the state | `service/release::a_release_installs_from_its_folder_and_from_a_place` `scripts/boot/checks.py::install.sh --uninstall` |
//! | sudo scripts/install.sh | `scripts/boot/checks.py::sudo ./install.sh` |
//! | with `apt install python3-venv` | `docs::scripts_have_what_the_readme_says_of_them` |
//! | all else comes from rustup and PyPI by itself | `docs::scripts_have_what_the_readme_says_of_them` |
//! | A container needs the host's network to find servers | `netns/doctor::a_server_on_another_subnet` |
//! | make deb # a Debian package | `service/release::packages_of_a_commit_are_equal` `scripts/boot/checks.py::dpkg -i` |
//! | TARGET=aarch64-unknown-linux-musl for a Pi | `docs::scripts_have_what_the_readme_says_of_them` |
//! | make dist # a release in target/dist | `docs::scripts_have_what_the_readme_says_of_them` `service/release::the_bill_of_materials_is_cargos` |
//! | release # after make static | `docs::scripts_have_what_the_readme_says_of_them` |
//! | docker run --network host -v ollana:/state ollana | `docs::scripts_have_what_the_readme_says_of_them` `scripts/dist.sh::the container is not built` |
//! | `sudo sh install.sh` installs on Linux and macOS | `service/release::a_release_installs_from_its_folder_and_from_a_place` `docs::scripts_have_what_the_readme_says_of_them` |
//! | -File install.ps1` on Windows | `docs::scripts_have_what_the_readme_says_of_them` |
//! | Both compare checksums | `service/release::a_release_that_is_damaged_or_of_other_machines_is_not_installed` `docs::scripts_have_what_the_readme_says_of_them` |
//! | another folder or an address with `--from` (`-From`) | `service/release::a_release_installs_from_its_folder_and_from_a_place` `docs::scripts_have_what_the_readme_says_of_them` |
//! | Not `cargo install ollana` | `docs::scripts_have_what_the_readme_says_of_them` |
//! | this program is on no registry of crates | `docs::scripts_have_what_the_readme_says_of_them` |
//! | installs for one user, without root | `service/release::make_installs_below_a_prefix` |
//! | starts ollana at boot (root's) or at log-in | `service/command::root_has_systemd_start_it` `service/command::a_user_has_the_own_systemd_start_it` `service/command::launchd_starts_it` `service/command::windows_starts_it_at_log_in` |
//! | `service remove` undoes that | `service/command::root_has_systemd_start_it` |
//! | `service firewall` lets the LAN in | `service/command::firewalls_are_opened_and_closed_again` |
//! | Ollana is built for Linux, macOS and Windows | `docs::scripts_have_what_the_readme_says_of_them` `scripts/cross.sh::aarch64-apple-darwin` |
//! | its tests run on Linux and under Wine | `scripts/windows.sh::cargo-zigbuild test` `Makefile::scripts/windows.sh` |
//! | have tried neither macOS nor `install.ps1` | `scripts/cross.sh::aarch64-apple-darwin` |
//! | For WSL2, see `ollana help trouble` | `docs::commands_topics_and_targets_exist` |
//!
//! # Use it
//!
//! | README.md | tests |
//! |---|---|
//! | on each machine, in any order | `netns/basics::a_server_that_starts_later_is_found` `netns/basics::clients_find_the_server_and_stream` |
//! | A machine where an Ollama answers becomes a server | `start::it_is_a_server_where_an_ollama_answers` |
//! | every other machine a client | `start::it_is_a_client_where_none_does` |
//! | [INFO] ready mode=server why= | `docs::ollana_is_ready_with_the_lines_of_the_readme` |
//! | ollana leaves it the port and becomes a server | `netns/roles::an_ollama_that_starts_later_gets_its_port_and_is_shared_and_streams_survive` |
//! | when Ollama is stopped for good, a client again | `netns/roles::an_ollama_that_starts_later_gets_its_port_and_is_shared_and_streams_survive` |
//! | use its models, but not change them | `netns/policy::another_machine_uses_models_and_changes_nothing` `threats/machines::another_machine_uses_models_and_changes_none` |
//! | A PC without ollana, such as one with Windows | `netns/plain::a_name_is_enough` |
//! | listen on the network (`OLLAMA_HOST=0.0.0.0`), and use `ollana --server PC` (not encrypted) | `netns/plain::a_name_is_enough` |
//! | These are the options that people use | `docs::options_of_the_readme_are_those_of_the_help` |
//! | Each one is also a variable | `src/cli/tests::every_flag_is_a_variable_and_the_first_flag_of_a_list_clears_it` |
//! | `OLLANA_MODE=server` | `src/cli/tests::every_flag_is_a_variable_and_the_first_flag_of_a_list_clears_it` `start::variables_are_options_too` |
//! | root's service reads `/etc/default/ollana` | `docs::scripts_have_what_the_readme_says_of_them` `service/command::root_has_systemd_start_it` |
//! | `auto` (the default), `client`, `server` | `docs::options_of_the_readme_are_those_of_the_help` `src/cli/tests::defaults_are_what_the_help_says` |
//! | a machine that shares its Ollama and uses the others' too | `netns/sharing::machines_share_and_use_each_others_ollama` |
//! | a server that broadcasts do not reach, such as one behind a VPN | `netns/interfaces::a_named_server_is_reached_through_a_router` `netns/doctor::a_tunnel_carries_no_broadcasts_and_what_to_do_is_said` |
//! | a PC that has Ollama but no ollana | `netns/plain::a_name_is_enough` |
//! | this machine's Ollama is not at its default address | `start::it_is_a_server_where_an_ollama_answers` |
//! | answer at another address | `start::it_is_a_server_where_an_ollama_answers` |
//! | use this server first while it is up | `src/manager/pool/choice/tests::headers_pins_bans_and_preferences_are_kept` |
//! | when no other server can do a request | `netns/waking::a_sleeping_server_is_woken_and_its_request_held` |
//! | a server at work stays awake | `awake::a_request_keeps_it_awake_until_some_time_after_its_end` |
//! | may pull, push, create, copy and delete models here | `netns/policy::manage_on_opens_management_and_nothing_else` `threats/machines::another_machine_uses_models_and_changes_none` |
//! | other machines get no models from this one | `ordinary/donor::nothing_is_given_where_that_is_off` `netns/policy::models_are_given_as_their_owner_says` |
//! | cloud models and web search | `ordinary/cloud::an_owner_can_keep_the_account` `ordinary/cloud::other_machines_search_the_web_unless_the_owner_keeps_the_account` |
//! | may not use what needs this machine's Ollama account | `ordinary/cloud::an_owner_can_keep_the_account` |
//! | accept requests that call this machine by this name | `src/access/host::only_names_of_this_machine_pass` `threats/pages::a_rebound_name_reaches_no_ollama` |
//!
//! # pair
//!
//! | README.md | tests |
//! |---|---|
//! | requests cross the LAN unencrypted | `pairing::nothing_that_is_said_is_on_the_wire` `netns/paired::two_commands_hide_what_is_said` |
//! | Two machines get a key so | `pair::two_commands_make_a_pair` |
//! | Type this on the other machine within 3 minutes | `pair::the_two_commands_say_what_the_readme_shows` `src/tools/pair/show::a_code_lives_no_longer_for_those_who_connect` |
//! | A running ollana takes it up by itself | `pair::running_daemons_take_keys_up_and_lose_them` |
//! | Requests between the two are encrypted from then on | `netns/paired::two_commands_hide_what_is_said` |
//! | each of them talks only to machines that it is paired with | `pairing::a_paired_client_uses_no_server_without_the_key` `netns/paired::a_rogue_client_gets_nothing` `netns/paired::a_rogue_server_is_not_used` |
//! | `--unpaired on` lifts that | `pairing::a_paired_client_uses_no_server_without_the_key` `keyed_discovery::mixed_homes_use_both_kinds` |
//! | needs TCP and UDP port 11439 open | `netns/paired::machines_of_two_subnets_pair_by_address` `pair::two_commands_make_a_pair` |
//! | `ollana pair CODE ADDRESS` pairs across subnets | `netns/paired::machines_of_two_subnets_pair_by_address` |
//! | `ollana peers` shows the paired machines | `pair::two_commands_make_a_pair` |
//! | `ollana unpair NAME` forgets one | `netns/paired::a_forgotten_machine_loses_access` |
//! | such as a phone, is let in by a token | `threats/tokens::a_token_opens_a_closed_server_to_inference_and_lists` |
//! | `ollana token add phone` | `threats/tokens::tokens_are_made_listed_and_removed` |
//! | Many machines can share one secret | `pairing::nothing_that_is_said_is_on_the_wire` |
//! | `openssl rand -hex 32 > key | `src/pairing/peers::secrets_are_read_in_two_ways` |
//! | chmod 600 key | `src/pairing/keyring/tests::a_key_file_is_a_peer` |
//! | ollana --key-file key` | `src/pairing/keyring/tests::a_key_file_is_a_peer` `scripts/e2e/checks.sh::--key-file` |
//!
//! # status
//!
//! | README.md | tests |
//! |---|---|
//! | $ ollana status | `src/tools/status::the_readme_shows_it` `status::it_answers_while_no_server_is_there` |
//! | KEY says whether requests to a server are encrypted | `src/tools/status::the_readme_shows_it` `pairing::nothing_that_is_said_is_on_the_wire` |
//! | `--watch` shows this every second | `status::watching_shows_the_state_every_second` |
//! | which server has which model and how fast it writes there | `src/tools/models::models_at_80_columns` |
//! | Both take `--json` | `status::commands_find_the_daemon_and_say_when_there_is_none` |
//! | on a server at port 11435, shows it all in a browser | `start::it_is_a_server_where_an_ollama_answers` `scripts/page/run.mjs::shows(page` `status::both_proxies_tell_of_themselves_and_pass_nothing_on` |
//! | There you unload models | `status::the_page_unloads_models_where_they_are` `scripts/page/run.mjs::shoot(page, 'unload')` |
//! | is remembered for 30 days while it is away | `src/manager/pool/away/tests::it_is_forgotten_after_thirty_days_and_over_restarts_as_well` |
//! | gets an error that names the server | `ordinary/away::whatever_names_a_model_of_a_server_that_is_away_gets_503` |
//! | forgets a server that is gone for good | `ordinary/away::a_server_is_forgotten_by_name_with_or_without_a_running_ollana` |
//!
//! # doctor
//!
//! | README.md | tests |
//! |---|---|
//! | examines ports, interfaces, firewall, Ollama and every server | `status::the_doctor_changes_nothing` |
//! | and says what to do | `netns/homes::a_firewall_drops_requests` `netns/homes::ollama_is_stopped` |
//! | It changes nothing | `status::the_doctor_changes_nothing` |
//! | servers ok desktop (10.77.0.1:11435) | `src/tools/doctor/servers::the_readme_shows_it` |
//!
//! # Read on
//!
//! | README.md | tests |
//! |---|---|
//! | `ollana --help`, `ollana help options`, `ollana help limits` | `docs::commands_topics_and_targets_exist` `src/cli/tests::everything_is_described` |
//! | `ollana help access`, `ollana help token`, `ollana help security` | `docs::commands_topics_and_targets_exist` |
//! | names that stand for other models (`--alias`) | `docs::commands_topics_and_targets_exist` `docs::topics_are_about_what_the_readme_says` |
//! | how models get from one machine to another | `docs::topics_are_about_what_the_readme_says` |
//! | a machine that has an Ollama and uses the others' | `docs::topics_are_about_what_the_readme_says` |
//! | systemd, background, log files | `docs::topics_are_about_what_the_readme_says` |
//! | Prometheus, JSON | `docs::topics_are_about_what_the_readme_says` |
//! | what goes wrong | `docs::topics_are_about_what_the_readme_says` |
//! | what goes over the network | `docs::topics_are_about_what_the_readme_says` `docs::datagrams_are_as_the_help_says` |
//! | speed, beside nginx and HAProxy | `docs::topics_are_about_what_the_readme_says` `docs::paths_exist` |
//! | the rooms, the life of a request, the invariants | `docs::topics_are_about_what_the_readme_says` `tidy::the_map_names_files_that_exist` |
//! | threats, and the tests for each | `threats::the_table_names_tests_that_exist_and_all_of_this_suite` |
//! | all tests, benchmarks and checks | `docs::commands_topics_and_targets_exist` |
//!
//! # Not for
//!
//! | README.md | tests |
//! |---|---|
//! | refuses connections from public addresses outside its own subnets | `threats/machines::the_internet_gets_not_a_byte` `src/access/addresses::the_internet_is_not_local` |
//! | Use a VPN, and `--server HOST` | `netns/doctor::a_tunnel_carries_no_broadcasts_and_what_to_do_is_said` |
//! | A request runs on one server | `ordinary/about::every_request_reaches_the_owner_of_its_model` `failover::inference_moves_on_from_a_server_that_dies_before_its_first_byte` |
//! | Ollana knows Ollama's API | `src/access/permissions/tests::every_route_of_ollama_has_its_class` |
//! | Other machines get an error for what it does not know | `threats/machines::another_machine_uses_models_and_changes_none` `ordinary/comeback::programs_hear_which_paths_another_machine_has_for_them` |
//! | the server's own programs reach it | `ordinary/comeback::this_machines_programs_hear_from_ollama_which_paths_it_has` |
//! | MIT, see | `docs::scripts_have_what_the_readme_says_of_them` |
//!
//! Tests are named by their file, below `tests/` unless it says `src/`; of scripts, a part of their text is
//! named. Those of `netns` and `scripts/boot` need root.
