//! Ordinary days in front of Ollamas that keep Ollama's contract: several servers, busy servers,
//! sleeping servers, cloud models, programs that write their requests in unusual ways.

mod support;

mod ordinary {
    mod about;
    mod alias;
    mod alive;
    mod away;
    mod busy;
    mod cloud;
    mod comeback;
    mod copies;
    mod copy_command;
    mod donor;
    mod front;
    mod lists;
    mod memory;
    mod pull_command;
    mod pulls;
    mod pushes;
    mod stand_in;
    mod stand_in_pulls;
    mod told;
}
