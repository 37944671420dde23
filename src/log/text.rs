//! Lines of the log for people, and for systemd's journal.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// How a line's time is written: UTC, milliseconds.
pub(super) const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

pub(super) fn now() -> String {
    OffsetDateTime::now_utc().format(TIME).unwrap_or_default()
}

/// A line as systemd's journal takes it, which has the time itself and knows levels by number
/// (sd-daemon(3)): `<4>server down …`.
pub(super) fn for_journald(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let parts = text.split_once(" [").and_then(|(_, rest)| rest.split_once("] "));
    let Some((level, message)) = parts else { return line.to_vec() };
    let number = match level {
        "ERROR" => 3,
        "WARN" => 4,
        "INFO" => 6,
        _ => 7,
    };
    format!("<{number}>{message}").into_bytes()
}
