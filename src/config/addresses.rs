//! The ways to name a machine: Ollama's URL, a server, a hardware address; and the ports.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Ollama's own HTTP port (`envconfig/config.go`).
pub(crate) const OLLAMA_PORT: u16 = 11434;
/// HTTP port of an Ollana server's proxy.
pub(crate) const SERVER_PORT: u16 = 11435;
/// HTTP port of the client's proxy where Ollama itself has [`OLLAMA_PORT`].
pub(crate) const POOLED_PORT: u16 = 11437;
/// UDP port of the discovery.
pub(crate) const DISCOVERY_PORT: u16 = 11436;

/// Where the local Ollama answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaUrl {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path put in front of every target; empty or `/x` without a trailing slash.
    pub prefix: String,
}

impl Default for OllamaUrl {
    fn default() -> Self {
        OllamaUrl { host: "127.0.0.1".to_owned(), port: OLLAMA_PORT, prefix: String::new() }
    }
}

impl OllamaUrl {
    pub(crate) fn server(&self) -> ServerName {
        ServerName { host: self.host.clone(), port: self.port }
    }
}

impl fmt::Display for OllamaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.server(), self.prefix)
    }
}

/// A server named by the user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerName {
    /// Host name or address, without brackets; an IPv6 address perhaps with `%` and its zone.
    pub host: String,
    /// TCP port of its proxy or its Ollama; 0 where the user didn't say.
    pub port: u16,
}

impl ServerName {
    /// The ports where it may answer, the best first: where there is an ollana, it knows more.
    pub(crate) fn ports(&self) -> Vec<u16> {
        match self.port {
            0 => vec![SERVER_PORT, OLLAMA_PORT],
            port => vec![port],
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host),
            false => f.write_str(&self.host),
        }?;
        if self.port == 0 { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// The hardware address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
        let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Mac)
            .ok_or_else(|| format!("{text}: expected six bytes such as d8:bb:c1:00:0a:ff"))
    }
}

/// A machine that may be asleep and is woken when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sleeper {
    /// By its hardware address.
    Mac(Mac),
    /// By name or address; its hardware address is learned while it is up.
    Server(String),
}

impl fmt::Display for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sleeper::Mac(mac) => mac.fmt(f),
            Sleeper::Server(name) => write!(f, "{name:?}"),
        }
    }
}

impl FromStr for Sleeper {
    type Err = String;

    /// What is no hardware address is a name; there is no error.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(text.parse().map_or_else(|_| Sleeper::Server(text.to_owned()), Sleeper::Mac))
    }
}

/// Reads an address of Ollama by the rules of its own `OLLAMA_HOST` (`envconfig.Host`): quotes and
/// blanks trimmed, no scheme means port 11434, `http://` means port 80, a path is kept.
pub(crate) fn parse_ollama(text: &str) -> Result<OllamaUrl, String> {
    let text = text.trim().trim_matches(['"', '\'']).trim();
    let (rest, default_port) = match text.split_once("://") {
        None => (text, OLLAMA_PORT),
        Some(("http", rest)) => (rest, 80),
        Some(("https", _)) => {
            return Err(format!("{text}: a local Ollama speaks plain http, not https"));
        }
        Some((scheme, _)) => return Err(format!("{text}: unknown scheme {scheme}")),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let prefix = path.trim_end_matches('/').to_owned();
    if prefix.bytes().any(|b| !(0x21..=0x7e).contains(&b) || b == b'#' || b == b'?') {
        return Err(format!("{text}: the path must be plain ASCII without '?' and '#'"));
    }
    let server = parse_host_port(authority, default_port)?;
    // A server is told to listen on "any address"; to reach it we ask loopback.
    let host = match server.host.as_str() {
        "" | "0.0.0.0" => "127.0.0.1".to_owned(),
        host if host.parse() == Ok(Ipv6Addr::UNSPECIFIED) => "::1".to_owned(),
        _ => server.host,
    };
    Ok(OllamaUrl { host, port: server.port, prefix })
}

/// Reads `HOST[:PORT]`, IPv6 with or without brackets, perhaps with a zone.
pub(crate) fn parse_host_port(text: &str, default_port: u16) -> Result<ServerName, String> {
    let text = text.trim();
    if text.contains('/') {
        return Err(format!("{text}: expected HOST or HOST:PORT, such as desktop:11434"));
    }
    if let Some(host) = ipv6(text) {
        return Ok(ServerName { host, port: default_port });
    }
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or(format!("{text}: missing ]"))?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if text.contains('%') && !text.starts_with('[') {
        return Err(format!(
            "{text}: a zone belongs to an IPv6 address, as in [fe80::1%eth0]:PORT"
        ));
    }
    let bracketed = text.starts_with('[').then(|| ipv6(host));
    if bracketed == Some(None) {
        return Err(format!("{text}: not an IPv6 address"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if bracketed.is_none() && !host.bytes().all(allowed) {
        return Err(format!("{text}: {host} is no host name or address"));
    }
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| format!("{text}: {port} is no port"))?,
        None if rest.is_empty() => default_port,
        None => return Err(format!("{text}: expected :PORT after ]")),
    };
    let host = bracketed.flatten().unwrap_or_else(|| host.to_owned());
    Ok(ServerName { host, port })
}

/// An IPv6 address, perhaps with the zone that a link-local one needs: an interface's name or number
/// behind `%` or, as in a URI, behind `%25` (RFC 6874).
fn ipv6(text: &str) -> Option<String> {
    let (ip, zone) = text.split_once('%').unwrap_or((text, ""));
    let ip: Ipv6Addr = ip.parse().ok()?;
    let escaped = zone.strip_prefix("25").filter(|zone| !zone.is_empty());
    let zone = escaped.unwrap_or(zone);
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-~".contains(&b);
    match zone {
        "" if text.contains('%') => None,
        "" => Some(ip.to_string()),
        zone => zone.bytes().all(fits).then(|| format!("{ip}%{zone}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_may_have_a_zone() {
        for (text, want) in [
            ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"),
            ("[fe80::1%25eth0]:1", "[fe80::1%eth0]:1"),
            ("[fe80::1%wlan0.5]", "[fe80::1%wlan0.5]:11435"),
            ("[fe80::1%2]:1", "[fe80::1%2]:1"),
            ("[fe80::1%25]:1", "[fe80::1%25]:1"),
            ("[fe80::1%252]:1", "[fe80::1%2]:1"),
            ("fe80::1%eth0", "[fe80::1%eth0]:11435"),
            ("FE80:0::1%eth0", "[fe80::1%eth0]:11435"),
            ("[::1]:1", "[::1]:1"),
            ("box:1", "box:1"),
        ] {
            let got = parse_host_port(text, SERVER_PORT).map(|server| server.to_string());
            assert_eq!(got.as_deref(), Ok(want), "{text}");
        }
        for text in [
            "[fe80::1%]:1",
            "fe80::1%",
            "[fe80::1%a b]",
            "[fe80::1%a%b]",
            "[10.0.0.1%eth0]",
            "box%eth0",
            "10.0.0.1%eth0",
            "[fe80::1%eth0]x",
        ] {
            assert!(parse_host_port(text, SERVER_PORT).is_err(), "{text}");
        }
        let url = parse_ollama("http://[fe80::1%25eth0]:1/x").expect("a URL");
        assert_eq!(url.to_string(), "http://[fe80::1%eth0]:1/x");
    }

    #[test]
    fn ollama_host_follows_ollamas_rules() {
        // Cases of envconfig's own table, where they describe an http address.
        for (text, want) in [
            ("", "http://127.0.0.1:11434"),
            ("1.2.3.4", "http://1.2.3.4:11434"),
            (":1234", "http://127.0.0.1:1234"),
            ("1.2.3.4:1234", "http://1.2.3.4:1234"),
            ("example.com", "http://example.com:11434"),
            ("http://1.2.3.4", "http://1.2.3.4:80"),
            ("http://1.2.3.4:1234/", "http://1.2.3.4:1234"),
            ("example.com/ollama", "http://example.com:11434/ollama"),
            ("[::1]", "http://[::1]:11434"),
            ("[::]:1337", "http://[::1]:1337"),
            ("::1", "http://[::1]:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("\"1.2.3.4\"", "http://1.2.3.4:11434"),
            ("' 1.2.3.4 '", "http://1.2.3.4:11434"),
        ] {
            let got = parse_ollama(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            assert_eq!(got.to_string(), want, "{text:?}");
        }
        for text in ["https://x", "ftp://x", "x:y", "[::1", "[x]", "a b", "x/?q"] {
            assert!(parse_ollama(text).is_err(), "{text:?}");
        }
    }
}
