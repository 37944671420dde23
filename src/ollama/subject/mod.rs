//! What a request is about, read from its body. Pure.
//!
//! A scan, not a parse: a body is fed as it comes in, may be cut anywhere, hold megabytes of images,
//! or be no JSON at all. `json` scans objects, `form` forms with files.

mod form;
mod json;

use std::ops::Range;

pub use form::FormScan;
pub use json::Scan;

/// What a body says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The model that is used, changed or made.
    pub model: Option<String>,
    /// Where it stands in the body: the bytes of the member's value, quotes included, or of a form's
    /// field with the end of its line.
    pub(crate) model_at: Option<Range<usize>>,
    /// What a `create` starts from: `from`, or the `FROM` line of the Modelfile that servers before
    /// 0.5.5 take.
    pub(crate) base: Option<String>,
    /// The top-level `keep_alive` is zero: where Ollama heeds that, it unloads the model.
    pub(crate) unloads: bool,
    /// It has a prompt that isn't empty, or at least one message.
    pub(crate) has_prompt: bool,
    pub(crate) has_messages: bool,
    /// It offers its model the search in the web, which goes by the server's account.
    pub(crate) searches_web: bool,
    /// One of the members that may name the model names one of Ollama's cloud. Not only the last one
    /// counts: Ollama looks for those before it decodes the body (`server/cloud_proxy.go`).
    pub(crate) names_cloud: bool,
    /// It offers its model tools.
    pub(crate) has_tools: bool,
    /// It shows its model images.
    pub(crate) has_images: bool,
    /// Bytes of text in its messages and prompts.
    pub(crate) text_bytes: u64,
    /// The context that its options set, in tokens.
    pub(crate) num_ctx: Option<u64>,
    /// The first text of the conversation: the start of its first `content`, `system` or `prompt` that
    /// isn't empty.
    pub opening: Option<String>,
}

/// Scans a body, or as much of one as is there. One that isn't an object, or ends early, tells what
/// stands before that.
pub fn subject(body: &[u8]) -> Subject {
    let mut scan = Scan::new(&["model", "name", "source"]);
    scan.push(body);
    scan.subject()
}

/// What a Modelfile starts from.
fn from_line(modelfile: &str) -> Option<String> {
    modelfile.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_from = words.next()?.eq_ignore_ascii_case("from");
        words.next().filter(|_| is_from).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> (Option<String>, bool, Option<String>) {
        let Subject { model, unloads, opening, .. } = subject(body.as_bytes());
        (model, unloads, opening)
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn models_of_all_kinds_of_requests() {
        for (body, model) in [
            (r#"{"model":"a"}"#, text("a")),
            (r#" { "name" : "a" , "stream":false}"#, text("a")),
            (r#"{"name":"old","model":"new"}"#, text("new")),
            (r#"{"model":"new","name":"old"}"#, text("new")),
            (r#"{"model":"","name":"old"}"#, text("old")),
            (r#"{"name":"old","model":""}"#, text("old")),
            (r#"{"source":"a","destination":"b"}"#, text("a")),
            (
                r#"{"messages":[{"role":"user","content":"\"model\":\"x\""}],"model":"a"}"#,
                text("a"),
            ),
            (r#"{"options":{"model":"x","a":[1,{"model":"y"}]},"model":"a"}"#, text("a")),
            (r#"{"images":["AAAA","BBBB"],"n":-1.5e3,"t":true,"z":null,"model":"a"}"#, text("a")),
            (r#"{"model":"a\u00e9\/b"}"#, text("aé/b")),
            (r#"{"model":3,"name":"a"}"#, text("a")),
            (r#"{"a":{},"b":[],"model":"a"}"#, text("a")),
            // Members in any case, the last of several, as Go's decoder takes them.
            (r#"{"Model":"a"}"#, text("a")),
            (r#"{"MODEL" : "a"}"#, text("a")),
            (r#"{"\u006dodel":"a"}"#, text("a")),
            (r#"{"\u017fource":"a"}"#, text("a")),
            ("{\"\u{17f}ource\":\"a\"}", text("a")),
            (r#"{"model":"a","model":"b"}"#, text("b")),
            (r#"{"model":"a","options":{"x":[{}]},"mOdel":"b"}"#, text("b")),
            (r#"{"model":"a","model":null,"x":1}"#, text("a")),
            (r#"{"model":"a","model":""}"#, None),
            (r#"{"model":"a","name":"b","model":""}"#, text("b")),
            (r#"{"name":"a","name":"","model":"b","source":"c"}"#, text("b")),
            (r#"{"source":"a","name":"b"}"#, text("b")),
            (r#"{" model":"a"}"#, None),
            (r#"{"                model":"a"}"#, None),
            (r#"{"model ":"a"}"#, None),
            (r#"{"models":"a","mode":"b"}"#, None),
            (r#"{"model":"a"}{"model":"b"}"#, text("a")),
            (r#"{"model":"a"} x {"model":"b"}"#, text("a")),
            (r#"{"model":"\ba\f"}"#, text("\u{8}a\u{c}")),
            (r#"{"x":"\\","y":"\"","model":"a"}"#, text("a")),
            (r#"{"x":"\\\"model\":\"b\"","model":"a"}"#, text("a")),
            (r#"{"model":{"model":"b"},"name":"a"}"#, text("a")),
            (r#"{"model":["b"],"name":"a"}"#, text("a")),
            (r#"{"model":" \n\ta"}"#, text(" \n\ta")),
            (&format!(r#"{{"model":"{}a"}}"#, " ".repeat(1024)), text("a")),
            (r#"{"model":"a"#, None),
            (r#"["model","a"]"#, None),
            (r#"{"messages":[{"content":"cut"#, None),
            ("", None),
            ("model=a", None),
            ("{", None),
            (r#"{"model":"#, None),
            (r#"{"model":"a\"#, None),
        ] {
            assert_eq!(of(body).0, model, "{body}");
        }
    }

    #[test]
    fn what_a_create_starts_from() {
        for (body, base) in [
            (r#"{"model":"new","from":"old"}"#, text("old")),
            (r##"{"name":"new","modelfile":"# x\nfrom  old:1b\nPARAMETER a 1"}"##, text("old:1b")),
            (r#"{"model":"new","from":"old","modelfile":"FROM other"}"#, text("old")),
            (r#"{"modelfile":"FROM other","from":"old"}"#, text("old")),
            (r#"{"from":"old","From":"other"}"#, text("other")),
            (r#"{"model":"new"}"#, None),
        ] {
            assert_eq!(subject(body.as_bytes()).base, base, "{body}");
        }
    }

    #[test]
    fn unloading_is_seen() {
        for (body, unloads) in [
            (r#"{"model":"a","keep_alive":0}"#, true),
            (r#"{"keep_alive":"0","model":"a"}"#, true),
            (r#"{"keep_alive":"0s"}"#, true),
            (r#"{"keep_alive":0.5}"#, false),
            (r#"{"Keep_Alive":0.0}"#, true),
            (r#"{"keep_alive":-0}"#, true),
            (r#"{"keep_alive":0e3}"#, true),
            (r#"{"keep_alive":1e-12}"#, true),
            (r#"{"keep_alive":"0h0.0s"}"#, true),
            (r#"{"keep_alive":"0.5s"}"#, false),
            (r#"{"keep_alive":"10m"}"#, false),
            (r#"{"keep_alive":0,"keep_alive":5}"#, false),
            (r#"{"keep_alive":0,"keep_alive":"5m"}"#, false),
            (r#"{"keep_alive":0,"keep_alive":null}"#, false),
            (r#"{"keep_alive":"5m","keep_alive":0}"#, true),
            ("{\"\u{212a}eep_alive\":0}", true),
            (r#"{"keep_alive":"5m"}"#, false),
            (r#"{"keep_alive":-1}"#, false),
            (r#"{"keep_alive":""}"#, false),
            (r#"{"options":{"keep_alive":0}}"#, false),
        ] {
            assert_eq!(of(body).1, unloads, "{body}");
        }
        assert_eq!(of(r#"{"keep_alive":0,"model":"a"}"#).0, text("a"));
    }

    #[test]
    fn what_there_is_to_answer_is_seen() {
        for (body, has_prompt, has_messages) in [
            (r#"{"model":"a","keep_alive":0}"#, false, false),
            (r#"{"prompt":""}"#, false, false),
            (r#"{"prompt":null,"messages":null}"#, false, false),
            (r#"{"prompt":"hi","system":""}"#, true, false),
            (r#"{"system":"","Prompt":"\u0068"}"#, true, false),
            (r#"{"system":"be kind","messages":[]}"#, false, false),
            (r#"{"prompt":"it is cut off he"#, true, false),
            (r#"{"prompt":""#, true, false),
            (r#"{"prompt":"x","prompt":""}"#, false, false),
            (r#"{"options":{"prompt":"x","messages":[{}]}}"#, false, false),
            (r#"{"messages":[{"role":"system","content":""}]}"#, false, true),
            (r#"{"messages":[ {"images":["AAAA"]} ]}"#, false, true),
            (r#"{"messages":[{"content":"x"}],"messages":[]}"#, false, false),
        ] {
            let subject = subject(body.as_bytes());
            assert_eq!(
                (subject.has_prompt, subject.has_messages),
                (has_prompt, has_messages),
                "{body}"
            );
        }
    }

    #[test]
    fn what_uses_the_account_is_seen() {
        let of = |body: &str| {
            let subject = subject(body.as_bytes());
            (subject.names_cloud, subject.searches_web)
        };
        for body in [
            r#"{"model":"a","tools":[{"type":"web_search_20250305","name":"web_search"}]}"#,
            r#"{"tools":[{"type":"function"},{"Type" : " web_search"}],"model":"a"}"#,
            r#"{"TOOLS":[{"name":"x","typ\u0065":"web\u005fsearch_preview"}]}"#,
            r#"{"tools":[{"type":"web_search"}],"tools":[]}"#,
        ] {
            assert_eq!(of(body), (false, true), "{body}");
        }
        for body in [
            r#"{"tools":[{"type":"function","function":{"name":"web_search"}}]}"#,
            r#"{"messages":[{"type":"web_search"}],"type":"web_search","tools":[]}"#,
            r#"{"tools":["web_search",{"web_search":"type"}]}"#,
        ] {
            assert_eq!(of(body), (false, false), "{body}");
        }
        for body in [
            r#"{"model":"a:cloud"}"#,
            r#"{"Model":"a:7b-Cloud"}"#,
            r#"{"model":"a:7b: cloud ","Model":"a"}"#,
            r#"{"name":"a:cloud","model":"b"}"#,
            &format!(r#"{{"model":"{}:cloud"}}"#, "a".repeat(600)),
        ] {
            assert_eq!(of(body), (true, false), "{body}");
        }
        assert_eq!(of(r#"{"model":"a:local","prompt":"b:cloud"}"#), (false, false));
    }

    #[test]
    fn tools_and_images_are_seen() {
        let of = |body: &str| {
            let subject = subject(body.as_bytes());
            (subject.has_tools, subject.has_images)
        };
        for body in [
            r#"{"tools":[{"type":"function","function":{"name":"f"}}],"model":"a"}"#,
            r#"{"messages":[],"Tools":[ {} ]}"#,
            r#"{"tools":[],"tools":[{"name":"f"}]}"#,
        ] {
            assert_eq!(of(body), (true, false), "{body}");
        }
        for body in [
            r#"{"prompt":"what is it?","images":["AAAA"]}"#,
            r#"{"IMAGES" : [ "AAAA" , "BBBB" ]}"#,
            r#"{"messages":[{"role":"user","content":"x","images":["AAAA"]},{"content":"y"}]}"#,
            r#"{"messages":[{"content":"x"},{"Images":[ "AAAA","content"],"content":"y"}]}"#,
            r#"{"messages":[{"content":[{"type":"text","text":"x"},
                {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}"#,
            r#"{"messages":[{"content":[{"source":{"data":"AAAA"},"type":"image"}]}]}"#,
            r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image"}]}]}]}"#,
            r#"{"input":[{"role":"user","content":[{"type":"input_image","image_url":"AAAA"}]}]}"#,
            r#"{"input":"x","messages":[{"images":["AAAA"]}],"images":[]}"#,
        ] {
            assert_eq!(of(body), (false, true), "{body}");
        }
        for body in [
            r#"{"tools":[],"images":[],"messages":[{"images":[],"content":"x"},{"images":null}]}"#,
            r#"{"tools":null,"images":null}"#,
            r#"{"tools":[{"name":"f"}],"tools":[],"images":["AAAA"],"images":null}"#,
            r#"{"messages":[{"images":["AAAA"]}],"messages":[{"content":"x"}]}"#,
            r#"{"messages":[{"content":"\"images\":[\"AAAA\"]"},{"content":"image"}]}"#,
            r#"{"messages":[{"role":"image","content":[{"type":"text","text":"image"}]}]}"#,
            r#"{"options":{"tools":[{}],"images":["AAAA"]},"format":{"type":"image"}}"#,
        ] {
            assert_eq!(of(body), (false, false), "{body}");
        }
        let both = r#"{"tools":[{}],"messages":[{"content":"x","images":["AAAA"]}]}"#;
        assert_eq!(of(both), (true, true));
    }

    #[test]
    fn only_text_makes_a_prompt_long() {
        let of = |body: &str| subject(body.as_bytes()).text_bytes;
        let text = "x".repeat(1000);
        let image = "A".repeat(5000);
        for (body, bytes) in [
            (format!(r#"{{"prompt":"{text}","system":"{text}","images":["{image}"]}}"#), 2000),
            (format!(r#"{{"messages":[{{"content":"{text}","images":["{image}"]}}]}}"#), 1000),
            (
                format!(
                    r#"{{"messages":[{{"content":[{{"type":"text","text":"{text}"}},
                    {{"type":"image_url","image_url":{{"url":"{image}"}}}}]}},
                    {{"Content":"{text}","role":"{text}"}}]}}"#
                ),
                2000,
            ),
            (format!(r#"{{"system":[{{"type":"text","text":"{text}"}}],"input":"{text}"}}"#), 2000),
            (format!(r#"{{"input":[{{"content":[{{"text":"{text}"}}]}}]}}"#), 1000),
            // Each of them is a prompt of its own.
            (format!(r#"{{"input":["{text}","{text}"]}}"#), 0),
            (format!(r#"{{"messages":[{{"content":"{text}"}}],"messages":[]}}"#), 0),
            (format!(r#"{{"format":{{"content":"{text}"}},"suffix":"{text}"}}"#), 0),
            (r#"{"prompt":"ab\ncd\u00e9"}"#.to_owned(), 4),
        ] {
            assert_eq!(of(&body), bytes, "{body:.60}");
        }
    }

    #[test]
    fn the_context_that_options_set_is_seen() {
        for (body, num_ctx) in [
            (r#"{"options":{"num_ctx":8192}}"#, Some(8192)),
            (
                r#"{"Options" : { "seed":5, "num_ctx" : 8192.0 , "top_k":1},"model":"a"}"#,
                Some(8192),
            ),
            (r#"{"options":{"num_ctx":8192,"num_ctx":4096}}"#, Some(4096)),
            (r#"{"options":{"num_ctx":8192},"options":{"num_ctx":4.096e3}}"#, Some(4096)),
            (r#"{"options":{"num_ctx":"8192"}}"#, None),
            (r#"{"options":{"num_ctx":-1}}"#, None),
            (r#"{"options":{"num_ctx":null}}"#, None),
            (r#"{"options":{"num_ctx":1e99}}"#, None),
            (r#"{"options":{"x":{"num_ctx":8192}},"num_ctx":1}"#, None),
            (r#"{"messages":[{"num_ctx":8192}]}"#, None),
            (r#"{"options":{"num_ct":8192,"xnum_ctx":1}}"#, None),
        ] {
            assert_eq!(subject(body.as_bytes()).num_ctx, num_ctx, "{body}");
        }
    }

    #[test]
    fn a_conversation_keeps_its_opening() {
        let turn = |rest: &str| {
            let first = r#"{"role":"user","content":"hello there"}"#;
            of(&format!(r#"{{"model":"a","messages":[{first}{rest}],"stream":true}}"#)).2
        };
        assert_eq!(turn(""), text("hello there"));
        assert_eq!(turn(r#",{"role":"assistant","content":"hi"}"#), turn(""));
        let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hey"}]}]}"#;
        assert_eq!(of(parts).2, text("hey"));
        assert_eq!(of(r#"{"prompt":"once","model":"a"}"#), (text("a"), false, text("once")));
        let empty = r#"{"role":"system","content":""},{"role":"user","content":"hey"}"#;
        assert_eq!(of(&format!(r#"{{"messages":[{empty}]}}"#)).2, text("hey"));
        assert_eq!(of(r#"{"system":"","prompt":"once"}"#).2, text("once"));
        let long = format!(r#"{{"prompt":"{}"#, "x".repeat(10_000));
        assert_eq!(of(&long).2.map(|opening| opening.len()), Some(json::OPENING));
    }

    #[test]
    fn pieces_of_any_size_say_the_same() {
        let first = r#"{"x":["\\\"",{"a":1}],"messages":[{"role":"user","content":"h\u00e9\"#;
        let told = r#""tools":[{"type":"function"}],"options":{"num_ctx":8192}"#;
        let body = format!(
            r#"{first}n {}","images":["AA"]}}],"Keep_alive":"0\u0073",{told},"model":"a\ud83d\ude00","MODEL":"b"}}"#,
            "é".repeat(200)
        );
        let whole = subject(body.as_bytes());
        assert_eq!((whole.model.as_deref(), whole.unloads), (Some("b"), true));
        assert_eq!(whole.model_at.clone().and_then(|at| body.get(at)), Some("\"b\""));
        assert!(whole.opening.as_ref().is_some_and(|text| text.starts_with("h\u{e9}\n \u{e9}")));
        assert!(whole.has_tools && whole.has_images);
        assert_eq!((whole.text_bytes, whole.num_ctx), (402, Some(8192)));
        for size in 1..body.len() {
            let mut scan = Scan::new(&["model", "name"]);
            for piece in body.as_bytes().chunks(size) {
                assert!(!scan.is_done());
                scan.push(piece);
            }
            assert_eq!((scan.is_done(), scan.subject()), (true, whole.clone()), "{size}");
        }
    }

    #[test]
    fn what_is_no_object_is_done_with_at_once() {
        for (body, is_done) in [
            ("x", true),
            ("[", true),
            ("\"", true),
            ("  ", false),
            (" \r\n\t{", false),
            ("{}", true),
        ] {
            let mut scan = Scan::new(&["model"]);
            scan.push(body.as_bytes());
            assert_eq!(scan.is_done(), is_done, "{body:?}");
        }
        let mut scan = Scan::new(&["source"]);
        scan.push(br#"{"model":"a","name":"b","source":"c"}"#);
        assert_eq!(scan.model(), Some("c"));
    }

    #[test]
    fn no_input_makes_it_panic_or_run_away() {
        let body = br#"{"a":[{"b":"c\u0041"},[1,2,{}]],"model":"m","messages":[{"content":"x"}]}"#;
        for len in 0..body.len() {
            subject(&body[..len]);
        }
        let mut random = 9u64;
        for _ in 0..50_000 {
            let mut mutated = body.to_vec();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = (random >> 8) as usize % mutated.len();
                mutated[at] = b"{}[]\",:\\u0a"[random as usize % 11];
            }
            subject(&mutated);
        }
        subject(&[b'['; 100_000]);
        subject(&[b'{'; 100_000]);
    }
}
