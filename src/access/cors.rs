//! Which web pages may use Ollama: `Origin` as Ollama decides it, CORS as Ollama answers it. Pure.
//!
//! Ollama refuses pages that it doesn't know (gin-contrib/cors 1.7.2 with `envconfig.AllowedOrigins`
//! and the configuration in `server/routes.go`). The first proxy that a page's request reaches
//! decides, by its own `OLLAMA_ORIGINS`: it runs on the page's machine, of which the Ollama behind
//! it knows nothing. Only that proxy decides: it doesn't pass on `Origin` and `Sec-Fetch-*`, and
//! answers get its CORS fields alone.
//!
//! Beyond Ollama: a browser's request from another site without `Origin`, such as an image's or a
//! link's, is refused too. Its answer can't be read by the page, but it would still be worked on.

use http::header::{self, HOST, HeaderName, HeaderValue, ORIGIN, VARY};
use http::{HeaderMap, Method};

use crate::http::fields::{entries, remove_where};

pub(crate) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Always allowed (`envconfig.AllowedOrigins`).
const BUILT_IN_HOSTS: &[&str] = &["localhost", "127.0.0.1", "0.0.0.0"];
const BUILT_IN_SCHEMES: &[&str] = &["app", "file", "tauri", "vscode-webview", "vscode-file"];
/// What an origin without a `*` begins with (`DefaultSchemas`, `ExtensionSchemas`); with any other,
/// Ollama doesn't start.
const SCHEMES: &[&str] = &[
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
];
/// Of an answer to a preflight.
const METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";
const FIELDS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,\
    X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,\
    X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,\
    X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
    X-Stainless-Runtime-Version,X-Stainless-Timeout";
const MAX_AGE: &str = "43200";

/// The allowed origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    allows_all: bool,
    exact: Vec<String>,
    /// What precedes and what follows the `*`.
    wildcards: Vec<(String, String)>,
}

impl Default for Origins {
    fn default() -> Self {
        Origins::new("").0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// No page of another origin asks.
    Plain,
    /// A page of an allowed origin; its answer gets these fields.
    Cors(Cors),
    /// Such a page asks what it may do: answered with these fields, and not passed on.
    Preflight(Cors),
    /// A page of any other origin.
    Refuse,
}

/// The value of `Access-Control-Allow-Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cors(HeaderValue);

impl Origins {
    /// The built-in ones and those of `OLLAMA_ORIGINS`; and entries that can't be used.
    pub fn new(configured: &str) -> (Self, Vec<String>) {
        let mut origins = Origins { allows_all: false, exact: Vec::new(), wildcards: Vec::new() };
        let entries = configured.trim().trim_matches(['"', '\'']).split(',').map(str::trim);
        let unusable = entries.filter(|entry| !entry.is_empty() && !origins.add(entry));
        let unusable = unusable.map(str::to_owned).collect();
        for host in BUILT_IN_HOSTS {
            for scheme in ["http", "https"] {
                origins.add(&format!("{scheme}://{host}"));
                origins.add(&format!("{scheme}://{host}:*"));
            }
        }
        for scheme in BUILT_IN_SCHEMES {
            origins.add(&format!("{scheme}://*"));
        }
        (origins, unusable)
    }

    fn add(&mut self, entry: &str) -> bool {
        let lower = entry.to_lowercase();
        match entry.split_once('*') {
            Some((_, after)) if after.contains('*') => return false,
            Some(("", "")) => self.allows_all = true,
            Some((before, after)) => self.wildcards.push((before.to_owned(), after.to_owned())),
            None if SCHEMES.iter().any(|scheme| lower.starts_with(scheme)) => {
                self.exact.push(lower)
            }
            None => return false,
        }
        true
    }

    fn allow(&self, origin: &[u8]) -> bool {
        self.allows_all
            || self.exact.iter().any(|known| known.as_bytes() == origin)
            || self.wildcards.iter().any(|(before, after)| {
                origin.starts_with(before.as_bytes()) && origin.ends_with(after.as_bytes())
            })
    }

    /// Decides about a request, whose `Host` is known to be this machine's.
    pub(crate) fn judge(&self, method: &Method, fields: &HeaderMap) -> Decision {
        let mut origins = fields.get_all(ORIGIN).iter();
        let origin = origins.next().filter(|origin| !origin.is_empty());
        if origins.next().is_some() {
            return Decision::Refuse;
        }
        let Some(origin) = origin else {
            let mut sites = fields.get_all(SEC_FETCH_SITE).iter().map(|site| site.as_bytes());
            let is_foreign =
                sites.any(|site| site.trim_ascii().eq_ignore_ascii_case(b"cross-site"));
            return if is_foreign && !self.allows_all { Decision::Refuse } else { Decision::Plain };
        };
        if is_own(origin, fields) {
            return Decision::Plain;
        }
        if !self.allow(origin.as_bytes()) {
            return Decision::Refuse;
        }
        let all = HeaderValue::from_static("*");
        let cors = Cors(if self.allows_all { all } else { origin.clone() });
        if method == Method::OPTIONS { Decision::Preflight(cors) } else { Decision::Cors(cors) }
    }
}

/// Whether it is the origin of the pages that are served at the request's own `Host`.
pub(crate) fn is_own(origin: &HeaderValue, fields: &HeaderMap) -> bool {
    let host = fields.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let is_of = |scheme: &[u8]| origin.as_bytes().strip_prefix(scheme) == Some(host);
    !host.is_empty() && (is_of(b"http://") || is_of(b"https://"))
}

/// Removes from a request the fields by which it was decided.
pub(crate) fn strip(fields: &mut HeaderMap) {
    remove_where(fields, |name| name == ORIGIN.as_str() || name.starts_with("sec-fetch-"));
}

impl Cors {
    /// Gives an answer its CORS fields, each once, whatever it had.
    pub(crate) fn mark(&self, fields: &mut HeaderMap) {
        remove_where(fields, |name| name.starts_with("access-control-"));
        fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.0.clone());
        let varies =
            entries(fields, VARY).any(|name| name == "*" || name.eq_ignore_ascii_case("origin"));
        if !self.is_for_all() && !varies {
            fields.append(VARY, HeaderValue::from_static("Origin"));
        }
    }

    /// The fields of the answer to a preflight, which is a 204 without a body.
    pub(crate) fn preflight(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        let value = HeaderValue::from_static;
        fields.insert(header::ACCESS_CONTROL_ALLOW_METHODS, value(METHODS));
        fields.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, value(FIELDS));
        fields.insert(header::ACCESS_CONTROL_MAX_AGE, value(MAX_AGE));
        fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.0.clone());
        if !self.is_for_all() {
            fields.append(VARY, value("Origin"));
            fields.append(VARY, value("Access-Control-Request-Method"));
            fields.append(VARY, value("Access-Control-Request-Headers"));
        }
        fields
    }

    fn is_for_all(&self) -> bool {
        self.0 == "*"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().expect("name");
            fields.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("value"));
        }
        fields
    }

    fn origins(configured: &str) -> Origins {
        let (origins, unusable) = Origins::new(configured);
        assert_eq!(unusable, [""; 0], "{configured}");
        origins
    }

    #[test]
    fn the_built_in_ones_are_ollamas() {
        let origins = Origins::default();
        for origin in [
            "http://localhost",
            "https://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://0.0.0.0",
            "http://0.0.0.0:1",
            "app://obsidian.md",
            "file://",
            "file:///home/me/x.html",
            "tauri://localhost",
            "vscode-webview://1a2b",
            "vscode-file://vscode-app",
        ] {
            assert!(origins.allow(origin.as_bytes()), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost.evil.example",
            "http://evil.example:11434",
            "https://localhost.",
            "http://LOCALHOST",
            "HTTP://localhost",
            "localhost",
            "//localhost",
            "http://localhost@evil.example",
            "ws://localhost",
            "http://[::1]",
            "http://127.0.0.2",
            "http://192.168.1.5",
            "chrome-extension://abc",
            "capp://x",
            "\u{e9}",
        ] {
            assert!(!origins.allow(origin.as_bytes()), "{origin}");
        }
    }

    #[test]
    fn configured_ones_follow_the_librarys_rules() {
        for (configured, origin, want) in [
            ("http://a.example", "http://a.example", true),
            ("http://a.example", "http://a.example:80", false),
            ("http://a.example", "https://a.example", false),
            ("HTTP://A.example", "http://a.example", true),
            ("http://a.example", "http://A.example", false),
            ("\"http://a.example\"", "http://a.example", true),
            ("http://b.example, http://a.example ", "http://a.example", true),
            ("http://*.a.example", "http://x.a.example", true),
            ("http://*.a.example", "http://a.example", false),
            ("http://*.a.example", "http://x.a.example.evil.example", false),
            ("https://a.example:*", "https://a.example:8443", true),
            ("https://a.example:*", "https://a.example", false),
            ("*.a.example", "http://x.a.example", true),
            ("*.a.example", "http://xa.example", false),
            ("chrome-extension://*", "chrome-extension://abc", true),
            ("chrome-extension://abc", "chrome-extension://abc", true),
            ("moz-extension://abc", "moz-extension://abd", false),
            ("*", "http://anything.example", true),
            ("*", "null", true),
            ("http://a.example", "null", false),
            ("http://a*", "http://a.evil.example", true),
        ] {
            assert_eq!(origins(configured).allow(origin.as_bytes()), want, "{configured} {origin}");
        }
        for entry in ["a.example", "null", "http://*.*.example", "**", "ws://a.example", "/x/"] {
            let (origins, unusable) = Origins::new(entry);
            assert_eq!(unusable, [entry]);
            assert_eq!(origins, Origins::default(), "{entry}");
        }
    }

    #[test]
    fn decisions() {
        let cors = |value: &'static str| Cors(HeaderValue::from_static(value));
        let local = "http://localhost:3000";
        let evil = "http://evil.example";
        type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Decision);
        let table: &[Row<'_>] = &[
            ("", "POST", &[], Decision::Plain),
            ("", "POST", &[("origin", "")], Decision::Plain),
            ("", "POST", &[("origin", local)], Decision::Cors(cors(local))),
            ("", "OPTIONS", &[("origin", local)], Decision::Preflight(cors(local))),
            ("", "OPTIONS", &[], Decision::Plain),
            ("", "POST", &[("origin", evil)], Decision::Refuse),
            ("", "OPTIONS", &[("origin", evil)], Decision::Refuse),
            ("", "GET", &[("origin", "null")], Decision::Refuse),
            ("", "GET", &[("origin", local), ("origin", local)], Decision::Refuse),
            (
                "",
                "GET",
                &[("origin", local), ("sec-fetch-site", "cross-site")],
                Decision::Cors(cors(local)),
            ),
            ("", "GET", &[("sec-fetch-site", "cross-site")], Decision::Refuse),
            ("", "GET", &[("sec-fetch-site", " Cross-Site ")], Decision::Refuse),
            (
                "",
                "GET",
                &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
                Decision::Refuse,
            ),
            ("", "GET", &[("origin", ""), ("sec-fetch-site", "cross-site")], Decision::Refuse),
            ("", "GET", &[("sec-fetch-site", "none")], Decision::Plain),
            ("", "GET", &[("sec-fetch-site", "same-origin")], Decision::Plain),
            (
                "",
                "GET",
                &[("host", "pi.local:1"), ("origin", "http://pi.local:1")],
                Decision::Plain,
            ),
            (
                "",
                "GET",
                &[("host", "pi.local:1"), ("origin", "http://pi.local:2")],
                Decision::Refuse,
            ),
            ("", "GET", &[("host", ""), ("origin", "http://")], Decision::Refuse),
            (evil, "POST", &[("origin", evil)], Decision::Cors(cors(evil))),
            (evil, "GET", &[("sec-fetch-site", "cross-site")], Decision::Refuse),
            ("*", "POST", &[("origin", "null")], Decision::Cors(cors("*"))),
            ("*", "OPTIONS", &[("origin", evil)], Decision::Preflight(cors("*"))),
            ("*", "GET", &[("sec-fetch-site", "cross-site")], Decision::Plain),
        ];
        for (configured, method, pairs, want) in table {
            let method = Method::from_bytes(method.as_bytes()).expect("method");
            let decision = origins(configured).judge(&method, &fields(pairs));
            assert_eq!(decision, *want, "{configured:?} {method} {pairs:?}");
        }
    }

    #[test]
    fn fields_are_there_once() {
        let cors = Cors(HeaderValue::from_static("http://localhost"));
        let mut answer = fields(&[
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("vary", "Accept"),
        ]);
        cors.mark(&mut answer);
        cors.mark(&mut answer);
        let want = fields(&[
            ("vary", "Accept"),
            ("access-control-allow-origin", "http://localhost"),
            ("vary", "Origin"),
        ]);
        assert_eq!(answer, want);
        assert_eq!(cors.preflight().get_all(VARY).iter().count(), 3);
        let all = Cors(HeaderValue::from_static("*"));
        let mut answer = HeaderMap::new();
        all.mark(&mut answer);
        assert_eq!(answer, fields(&[("access-control-allow-origin", "*")]));
        assert_eq!(all.preflight().get(VARY), None);
        let mut request = fields(&[
            ("origin", "x"),
            ("sec-fetch-site", "x"),
            ("sec-fetch-mode", "x"),
            ("sec-ch-ua", "x"),
        ]);
        strip(&mut request);
        assert_eq!(request, fields(&[("sec-ch-ua", "x")]));
    }
}
