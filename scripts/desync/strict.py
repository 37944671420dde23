"""A strict reader of HTTP/1.1 requests (RFC 9112), written apart from ollana's own.

It gives the *intended* reading of a client's bytes: the requests before the first thing that two
readers might take differently. That is where it stops; it never repairs and never guesses. What
ollana takes from a client beyond that, `plain` writes as a strict client would have.
"""

import re
from dataclasses import dataclass, field

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
TARGET = re.compile(rb"[\x21-\x7e]+")
VERSION = re.compile(rb"HTTP/1\.[01]")
SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e]*)?")
# What belongs to one hop, or is written anew by each (RFC 9110 section 7.6.1).
PER_HOP = {
    b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-connection",
    b"te", b"trailer", b"transfer-encoding", b"upgrade", b"via",
}  # fmt: skip
# The first proxy judges the page by these, and takes them out.
JUDGED = (b"origin", b"sec-fetch-")


class Refused(Exception):
    """The bytes can be read in more than one way, or in none."""


class Incomplete(Exception):
    """All is well so far, and more must come."""


@dataclass
class Request:
    """One request as a strict reader sees it."""

    method: bytes
    target: bytes
    version: bytes
    fields: list = field(default_factory=list)
    body: bytes = b""
    #: Which one it was of all that the upstream got.
    number: int = 0

    def values(self, name):
        return [value for key, value in self.fields if key == name]

    def closes(self):
        """Whether nothing after it on the connection is a request."""
        tokens = b",".join(self.values(b"connection")).lower().split(b",")
        return self.version != b"HTTP/1.1" or b"close" in [token.strip() for token in tokens]

    def end_to_end(self):
        """The fields that a proxy must pass on, sorted."""
        tokens = b",".join(self.values(b"connection")).lower().split(b",")
        dropped = PER_HOP | {token.strip() for token in tokens}
        passed = (pair for pair in self.fields if pair[0] not in dropped)
        return sorted(pair for pair in passed if not pair[0].startswith(JUDGED))

    def identity(self):
        return (self.method, self.target, self.body)

    def __str__(self):
        line = b" ".join((self.method, self.target)).decode("latin-1")
        return f"{line} (+{len(self.body)} bytes)" if self.body else line


class Cursor:
    """Reads bytes from the front; complains about line ends other than CR LF."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def line(self):
        end = self.data.find(b"\n", self.at)
        text = self.data[self.at :] if end < 0 else self.data[self.at : end + 1]
        if b"\0" in text:
            raise Refused("NUL")
        inner = text[:-2] if text.endswith(b"\r\n") else text.removesuffix(b"\r")
        if b"\r" in inner or b"\n" in inner:
            raise Refused("bare CR or LF")
        if end < 0:
            raise Incomplete
        self.at = end + 1
        return inner

    def take(self, count):
        if len(self.data) - self.at < count:
            raise Incomplete
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece


def read_field(line):
    name, colon, value = line.partition(b":")
    if not colon or not TOKEN.fullmatch(name):
        raise Refused("field name")
    if not VALUE.fullmatch(value):
        raise Refused("field value")
    return name.lower(), value.strip(b" \t")


def read_fields(cursor):
    fields = []
    while line := cursor.line():
        fields.append(read_field(line))
    return fields


def read_head(cursor):
    parts = cursor.line().split(b" ")
    if len(parts) != 3:
        raise Refused("request line")
    method, target, version = parts
    if not TOKEN.fullmatch(method) or method == b"CONNECT":
        raise Refused("method")
    if not TARGET.fullmatch(target) or b"#" in target:
        raise Refused("target")
    if not VERSION.fullmatch(version):
        raise Refused("version")
    request = Request(method, target, version, read_fields(cursor))
    hosts = len(request.values(b"host"))
    if hosts > 1 or (hosts == 0 and version == b"HTTP/1.1"):
        raise Refused("Host")
    return request


def framing(request):
    """The length of the body, or None for chunks."""
    codings, lengths = request.values(b"transfer-encoding"), request.values(b"content-length")
    if codings and lengths:
        raise Refused("Transfer-Encoding and Content-Length")
    if codings:
        if request.version != b"HTTP/1.1" or [coding.lower() for coding in codings] != [b"chunked"]:
            raise Refused("Transfer-Encoding")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        raise Refused("Content-Length")
    return int(lengths[0])


def read_chunks(cursor):
    body = b""
    while True:
        size = SIZE.fullmatch(cursor.line())
        if not size:
            raise Refused("chunk size")
        length = int(size[1], 16)
        if length == 0:
            read_fields(cursor)
            return body
        body += cursor.take(length)
        if cursor.data[cursor.at : cursor.at + 2] not in (b"", b"\r", b"\r\n"):
            raise Refused("end of a chunk")
        cursor.take(2)


def read_request(data):
    """The request at the start of `data` and its length in bytes."""
    cursor = Cursor(data)
    request = read_head(cursor)
    length = framing(request)
    request.body = read_chunks(cursor) if length is None else cursor.take(length)
    return request, cursor.at


def plain(data):
    """The same bytes without what is allowed to clients alone, and whether no request may follow."""
    for _ in range(4):
        data = data.removeprefix(b"\r\n") if data.startswith(b"\r\n") else data.removeprefix(b"\n")
    line, feed, _ = data.partition(b"\n")
    closes = bool(feed) and not line.endswith(b"\r")
    if closes:
        head, end, _ = data.partition(b"\n\n")
        framed = re.search(rb"\n(content-length|transfer-encoding):", head, re.IGNORECASE)
        if b"\r" in head or framed:
            raise Refused("bare LF")
        data = (head + end).replace(b"\n", b"\r\n")
    line, feed, rest = data.partition(b"\r\n")
    parts = line.split(b" ")
    if len(parts) == 3 and parts[0] != b"CONNECT":
        parts[1] = plain_target(parts[0], parts[1])
    return b" ".join(parts) + feed + rest, closes


def plain_target(method, target):
    """In origin form, with escapes for what no URI has."""
    if absolute := re.fullmatch(rb"(?i:http)://([^/?#@]+)([/?#].*)?", target):
        target = absolute[2] or (b"*" if method == b"OPTIONS" else b"/")
        target = target if target[:1] in b"/*" else b"/" + target
    elif not (target.startswith(b"/") or (target == b"*" and method == b"OPTIONS")):
        raise Refused("target")
    path, mark, query = target.partition(b"?")
    escape = lambda byte: b"%%%02X" % byte[0][0]  # noqa: E731
    return re.sub(rb"[<>`]", escape, path) + mark + re.sub(rb'["<>\x80-\xff]', escape, query)


@dataclass
class Reading:
    """What a client's bytes mean: whole requests, and what is behind them."""

    requests: list
    #: "end", "closed" (what follows isn't read), "partial" or "refused".
    tail: str
    reason: str = ""


def read_all(data):
    """Reads a connection's bytes from its first to the first doubtful one."""
    requests = []
    while data:
        try:
            data, closes = plain(data)
            if not data:
                break
            request, length = read_request(data)
        except Incomplete:
            return Reading(requests, "partial")
        except Refused as refusal:
            return Reading(requests, "refused", str(refusal))
        requests.append(request)
        data = data[length:]
        if closes or request.closes():
            return Reading(requests, "closed")
    return Reading(requests, "end")
