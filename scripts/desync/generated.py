"""Vectors of our own: heads. Every byte around the framing fields, and all their combinations."""

from bodies import SMUGGLED, bodies
from judge import Vector

HOST = b"Host: localhost\r\n"


def head(fields, line=b"POST /first HTTP/1.1", host=HOST):
    return line + b"\r\n" + host + fields + b"\r\n"


def places(name, value, byte):
    """A field with one more byte at each place of interest."""
    middle = len(name) // 2
    inner = len(value) // 2
    yield "before the name", byte + name + b": " + value
    yield "in the name", name[:middle] + byte + name[middle:] + b": " + value
    yield "after the name", name + byte + b": " + value
    yield "before the value", name + b":" + byte + value
    yield "in the value", name + b": " + value[:inner] + byte + value[inner:]
    yield "after the value", name + b": " + value + byte


def sweeps():
    """Whoever takes the field for what it looks like sees another end of the body."""
    chunked = b"0\r\n\r\n" + SMUGGLED
    length = b"Content-Length: %d\r\n" % len(chunked)
    size = b"%d" % len(SMUGGLED)
    for code in range(256):
        byte = bytes([code])
        for where, line in places(b"Transfer-Encoding", b"chunked", byte):
            name = f"byte {code:02x} {where}"
            yield f"TE and CL, {name}", head(length + line + b"\r\n") + chunked
            yield f"TE, {name}", head(line + b"\r\n") + chunked
        for where, line in places(b"Content-Length", size, byte):
            yield f"CL, byte {code:02x} {where}", head(line + b"\r\n") + SMUGGLED


LENGTHS = [
    b"0", b"5", b"%d", b"0%d", b"+%d", b"-%d", b"-1", b"%d,%d", b"%d, %d", b"%d, 0", b"0x%x", b"%d ", b"\t%d",
    b"%d.0", b"1e1", b"", b"%d;a", b'"%d"', b"%d %d", b"9" * 18, b"9" * 19, b"9" * 40,
    b"18446744073709551615", b"18446744073709551616", b"4294967296", b"chunked",
]  # fmt: skip
CODINGS = [
    b"chunked", b"Chunked", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"gzip",
    b"chunked;q=1", b", chunked", b"chunked,", b"x", b"", b"\x0bchunked", b"'chunked'", b'"chunked"', b"chunke",
    b"chunkedd", b"identity, chunked", b"chunked identity",
]  # fmt: skip


def combinations():
    chunked = b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED

    def length_line(text):
        count = text.count(b"%")
        return b"Content-Length: " + text % ((len(chunked),) * count) + b"\r\n"

    def coding_line(text):
        return b"Transfer-Encoding: " + text + b"\r\n"

    for one in LENGTHS:
        yield f"CL {one!r}", head(length_line(one)) + chunked
        for other in (b"0", b"5", b"%d"):
            yield f"CL {one!r} and {other!r}", head(length_line(one) + length_line(other)) + chunked
            yield f"CL {other!r} and {one!r}", head(length_line(other) + length_line(one)) + chunked
        for coding in CODINGS:
            yield f"CL {one!r} TE {coding!r}", head(length_line(one) + coding_line(coding)) + chunked
            yield f"TE {coding!r} CL {one!r}", head(coding_line(coding) + length_line(one)) + chunked
    for one in CODINGS:
        yield f"TE {one!r}", head(coding_line(one)) + chunked
        yield f"TE {one!r} in HTTP/1.0", head(coding_line(one), b"POST /first HTTP/1.0") + chunked
        for other in CODINGS:
            yield f"TE {one!r} and {other!r}", head(coding_line(one) + coding_line(other)) + chunked
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"get", b"SMUGGLE"):
        line = method + b" /first HTTP/1.1"
        name = method.decode()
        yield f"{name} with chunks", head(coding_line(b"chunked"), line) + chunked
        yield f"{name} with a length", head(b"Content-Length: 5\r\n", line) + b"hello" + SMUGGLED
        yield f"{name} with length 0", head(b"Content-Length: 0\r\n", line) + SMUGGLED
        yield f"{name} without a body", head(b"", line) + SMUGGLED


def disguises():
    """Framing fields that hide: folded, by another name, behind Connection, in other line ends."""
    chunked = b"0\r\n\r\n" + SMUGGLED
    length = b"Content-Length: %d\r\n" % len(chunked)
    for blank in (b" ", b"\t", b"  ", b"\x0b", b"\x0c"):
        for line in (
            b"Transfer-Encoding:\r\n%schunked\r\n",
            b"X: y\r\n%sTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\n%s\r\n",
            b"%sTransfer-Encoding: chunked\r\n",
            b"%s\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked,\r\n%sgzip\r\n",
        ):
            yield f"fold {line % blank!r}", head(length + line % blank) + chunked
            yield f"fold first {line % blank!r}", head(line % blank + length, host=b"") + chunked
    for name in (
        b"Transfer_Encoding", b"Transfer Encoding", b"TransferEncoding", b"X-Transfer-Encoding", b"Content_Length",
        b"Transfer-Encoding\\", b'"Transfer-Encoding"', b"Transfer-Encoding;", b"Content-Encoding", b"TE", b"Trailer",
        b"Transf\xc3\xa9r-Encoding", b"Transfer\xad-Encoding", b"Transfer\xe2\x80\x90Encoding", b"",
    ):  # fmt: skip
        yield f"name {name!r}", head(length + name + b": chunked\r\n") + chunked
    for named in (b"Content-Length", b"Transfer-Encoding", b"Host", b"Via", b"close", b"keep-alive", b"Upgrade"):
        yield f"Connection: {named!r}", head(length + b"Connection: " + named + b"\r\n") + chunked
        yield f"Connection: {named!r} and chunks", head(
            b"Transfer-Encoding: chunked\r\nConnection: " + named + b"\r\n"
        ) + chunked
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    yield "h2c upgrade", head(upgrade, b"GET /first HTTP/1.1") + SMUGGLED
    yield "h2c preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED
    for expected in (b"100-continue", b"100-Continue", b"100-continue, x", b"x", b"200-ok", b""):
        expect = b"Expect: " + expected + b"\r\n"
        yield f"Expect {expected!r}", head(expect + b"Content-Length: 5\r\n") + b"hello" + SMUGGLED
        yield f"Expect {expected!r} without body", head(expect) + SMUGGLED


def request_lines():
    for space in (b"  ", b"\t", b"\x0b", b"\x0c", b"\xa0", b"", b" \r ", b"\0", b" \t"):
        yield f"method{space!r}target", head(b"", b"GET" + space + b"/first HTTP/1.1") + SMUGGLED
        yield f"target{space!r}version", head(b"", b"GET /first" + space + b"HTTP/1.1") + SMUGGLED
        yield f"{space!r} first", head(b"", space + b"GET /first HTTP/1.1") + SMUGGLED
        yield f"{space!r} last", head(b"", b"GET /first HTTP/1.1" + space) + SMUGGLED
    for version in (
        b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1", b"HTTP/01.1",
        b"HTTP/1.01", b"HTTP/1.1.", b"HTTP/11", b"http/1.1", b"HTTPS/1.1", b"HTTP/1,1", b"HTTP/1.10", b"HTTP /1.1",
        b"XTTP/1.1", b"HTTP/1.1 HTTP/1.0", b"HTTP/\xb9.1", b"",
    ):  # fmt: skip
        yield f"version {version!r}", head(b"", b"GET /first " + version) + SMUGGLED
        yield f"version {version!r} with a body", head(b"Content-Length: 5\r\n", b"POST /first " + version) + b"hello"
    for target in (
        b"http://localhost/first", b"http://evil/first", b"https://evil:1/", b"http:/first", b"//evil/first", b"/\\evil",
        b"evil", b"@evil", b"evil:80", b"*", b"/first#x", b"/first?x y", b"/\x80", b"/%00", b"/%0d%0aX:%20y", b"/a|b{}",
        b"/first\x7f", b"", b"/../api", b"/;x", b"?x", b":80/", b"/" + b"a" * 9000, b"/" + b"a" * 70000,
    ):  # fmt: skip
        for method in (b"GET", b"OPTIONS"):
            yield f"{method.decode()} {target[:30]!r}", head(b"", method + b" " + target + b" HTTP/1.1") + SMUGGLED
    for host in (
        b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nHost: evil\r\n", b"Host:\r\n", b"Host: \r\n",
        b"Host: evil\r\n", b"Host: localhost, evil\r\n", b"Host: localhost evil\r\n", b"Host: user@localhost\r\n",
        b"Host: localhost:x\r\n", b"Host: localhost/\r\n", b"Host: [::1\r\n", b"Host: \x80\r\n", b"host: localhost\r\n",
        b"Host : localhost\r\n", b"\tHost: localhost\r\n", b"Host: localhost\r\n evil\r\n", b"Host: localhost\0\r\n",
    ):  # fmt: skip
        yield f"host {host!r}", head(b"", b"GET /first HTTP/1.1", host) + SMUGGLED
        yield f"host {host!r} in HTTP/1.0", head(b"", b"GET /first HTTP/1.0", host) + SMUGGLED


def line_ends():
    ends = (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\0\r\n", b" \r\n")
    lines = (b"POST /first HTTP/1.1", b"Host: localhost", b"Transfer-Encoding: chunked", b"")
    for place, line in enumerate(lines):
        for end in ends:
            wrong = [piece + (end if at == place else b"\r\n") for at, piece in enumerate(lines)]
            yield f"{end!r} behind {line!r}", b"".join(wrong) + b"0\r\n\r\n" + SMUGGLED
    for end in ends:
        yield f"all lines end in {end!r}", b"".join(line + end for line in lines) + b"0\r\n\r\n" + SMUGGLED
        yield f"{end!r} before the request", end + head(b"", b"GET /first HTTP/1.1") + SMUGGLED
        yield f"{end!r} between requests", head(b"Content-Length: 5\r\n") + b"hello" + end + SMUGGLED
    many = b"".join(b"X-%d: y\r\n" % number for number in range(200))
    yield "200 fields", head(many, b"GET /first HTTP/1.1") + SMUGGLED
    yield "a field of 20 KB", head(b"X: " + b"y" * 20000 + b"\r\n", b"GET /first HTTP/1.1") + SMUGGLED
    yield "a head of 100 KB", head((b"X: " + b"y" * 9000 + b"\r\n") * 11, b"GET /first HTTP/1.1") + SMUGGLED


def vectors():
    """All of them."""
    for part in (sweeps, combinations, disguises, request_lines, line_ends, bodies):
        for name, data in part():
            yield Vector(part.__name__.replace("_", " "), name, data)
