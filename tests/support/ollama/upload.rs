//! Pushes, layer by layer and part by part (`server/images.go`, `server/upload.go`). What the registry has
//! isn't sent. Parts are a hundredth of Ollama's. One upload of a layer goes on at a time, wherever to.

use std::fs;

use super::Machine;
use super::body::Fields;
use super::download::{Lines, Source, Stop};
use super::names::Name;
use super::reply::Reply;
use super::store::{Store, layers, worded};

const PART: usize = 1_000_000;

/// `POST /api/push` of a model that is there.
pub(super) fn push(
    machine: &Machine,
    store: &Store,
    reply: &mut Reply<'_, '_>,
    fields: &Fields,
    name: &Name,
) {
    let source = machine.world(|world| Source::of(world, name, fields.flag("insecure")));
    Lines::answer(reply, fields, |lines| run(store, lines, name, &source));
}

fn run(
    store: &Store,
    lines: &mut Lines<'_, '_, '_>,
    name: &Name,
    source: &Source,
) -> Result<(), Stop> {
    lines.say("retrieving manifest")?;
    let path = store.path().join("manifests").join(name.path());
    let manifest = fs::read_to_string(path).map_err(worded)?;
    let all = layers(manifest.as_bytes()).ok_or_else(|| "no manifest".to_owned())?;
    let [path, tag] = name.registry_path();
    for (digest, _) in &all {
        let head = source.send("HEAD", &format!("/v2/{path}/blobs/{digest}"), "", b"")?.0;
        match head.status() {
            200 => continue,
            404 => {}
            status => return Err(Stop::Failed(format!("{status}: "))),
        }
        let query = if manifest.contains("\"from\"") { "?from=a%2Fb&mount=x" } else { "" };
        let begin = format!("/v2/{path}/blobs/uploads/{query}");
        let mut place = accepted(source, "POST", &begin, "Content-Length: 0\r\n", b"")?;
        let bytes = fs::read(store.blob(digest)).map_err(worded)?;
        for (index, part) in bytes.chunks(PART).enumerate() {
            let (first, length) = (index * PART, part.len());
            let fields = format!(
                "Content-Length: {length}\r\nX-Redirect-Uploads: 1\r\nContent-Range: {first}-{}\r\n",
                first + length - 1
            );
            place = accepted(source, "PATCH", &place, &fields, part)?;
            lines.check()?;
        }
        let end = format!("{place}?digest={digest}&etag=x");
        source.send("PUT", &end, "Content-Length: 0\r\n", b"")?;
    }
    lines.say("pushing manifest")?;
    let text = manifest.trim_end();
    let fields = format!("Content-Length: {}\r\n", text.len());
    let put = format!("/v2/{path}/manifests/{tag}");
    match source.send("PUT", &put, &fields, text.as_bytes())?.0.status() {
        200..300 => lines.say("success"),
        status => Err(Stop::Failed(format!("{status}: "))),
    }
}

/// Where what comes next goes.
fn accepted(
    source: &Source,
    method: &str,
    path: &str,
    fields: &str,
    body: &[u8],
) -> Result<String, Stop> {
    let (head, ..) = source.send(method, path, fields, body)?;
    let place = head.one("location").filter(|_| head.status() == 202);
    let place = place.ok_or_else(|| format!("http status {}: ", head.status()))?;
    let path = place.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
    Ok(path.ok_or_else(|| "an address without a host".to_owned())?.to_owned())
}
