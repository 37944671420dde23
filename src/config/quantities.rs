//! Times and sizes as people write them.

use std::time::Duration;

const LONGEST_MS: u64 = 24 * 60 * 60 * 1000;
const LARGEST: usize = 1 << 30;

/// Reads `250ms`, `5s`, `2m` or a bare number of seconds: more than zero, at most a day.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split_unit(text);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(millis)) {
        Some(ms @ 1..=LONGEST_MS) => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text}: expected a time such as 250ms, 5s or 2m, at most a day")),
    }
}

/// Reads `4096`, `64k` or `4m`: bytes, KiB, MiB, at most a GiB.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = split_unit(text);
    let factor = match unit {
        "" => Some(1),
        "k" => Some(1 << 10),
        "m" => Some(1 << 20),
        _ => None,
    };
    let size = digits.parse::<usize>().ok().zip(factor).and_then(|(n, unit)| n.checked_mul(unit));
    size.filter(|size| *size <= LARGEST)
        .ok_or_else(|| format!("{text}: expected a size such as 4096, 64k or 4m, at most 1024m"))
}

/// `12 s`, `3 m 5 s`, `2 h 10 m`, `3 d 4 h`.
pub(crate) fn elapsed(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{} s", seconds % 60),
        (0, 0, _) => format!("{minutes} m {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} m"),
        _ => format!("{days} d {hours} h"),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("1440m"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "0", "s", "-1s", "1h", "2d", "1.5s", "1441m", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_size("64k"), Ok(65536));
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("1024m"), Ok(1 << 30));
        for bad in ["", "k", "1g", "1025m", "2048m", "-1", "18446744073709551615k"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
