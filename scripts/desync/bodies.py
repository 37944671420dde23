"""Vectors of our own: bodies. Chunks, extensions, trailers, and what stands behind a request."""

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX: y\r\n\r\n"
CHUNKED = b"POST /first HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b"POST /first HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"

SIZES = [
    b"5", b"05", b"0000000005", b"00000000000000000000005", b" 5", b"5 ", b"5\t", b"\t5", b"+5", b"-5", b"0x5", b"5h",
    b"5.", b"5,5", b"5 5", b"", b"g", b"\xb5", b"5\0", b"\x005", b"5\x0b", b"ffffffffffffffff", b"7fffffffffffffff",
    b"8000000000000005", b"10000000000000005", b"100000005", b"fffffffffffffffffffffffffffffff5", b"-0", b"00",
]  # fmt: skip
EXTENSIONS = [
    b";", b";a", b";a=b", b";a=\"b\"", b";a=\"b;c\"", b"; a", b" ;a", b" ; a = b", b";;", b";=", b";a=", b";\t", b"; 5",
    b";a=\"", b";a='\"", b";\xe9", b";\0", b";\x7f", b";\r", b";\n", b";a\nb", b";a\rb", b";\r\r", b"a;", b",a", b"\t;a",
    b";" + b"a" * 200, b";" + b"a" * 300, b";" + b"a" * 70000, b";\x01", b"#", b"\\;",
]  # fmt: skip
ENDS = [
    b"\r\n", b"X\n", b"\rX", b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\r\n", b"", b" \r\n", b"XX", b"\r\nX", b"\0\r\n",
]  # fmt: skip
TRAILERS = [
    b"X: y\r\n", b"X:y\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: evil\r\n", b"X\r\n",
    b" X: y\r\n", b"X : y\r\n", b": y\r\n", b"X: y\r\n folded\r\n", b"X: y\n", b"X: y\r", b"X: \0\r\n", b"X: \x7f\r\n",
    b"GET /smuggled HTTP/1.1\r\n", b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n", b"\n", 
    b"X: " + b"y" * 9000 + b"\r\n", b"a: b\r\n" * 500, b"5\r\nhello\r\n0\r\n", b"X\xe9: y\r\n", b"X: \xe9\r\n",
]  # fmt: skip


def bodies():
    for size in SIZES:
        yield f"size {size!r}", CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED
        yield f"last size {size!r}", CHUNKED + b"5\r\nhello\r\n" + size + b"\r\n\r\n" + SMUGGLED
    for extension in EXTENSIONS:
        name = repr(extension[:20])
        yield f"extension {name}", CHUNKED + b"5" + extension + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED
        yield f"last extension {name}", CHUNKED + b"5\r\nhello\r\n0" + extension + b"\r\n\r\n" + SMUGGLED
        # For whoever ends the line within the extension, the rest is data or another request.
        hidden = b"5" + extension + b"\r\n0\r\n\r\n" + SMUGGLED
        yield f"extension {name} over a last chunk", CHUNKED + hidden
    for end in ENDS:
        yield f"{end!r} behind a size", CHUNKED + b"5" + end + b"hello\r\n0\r\n\r\n" + SMUGGLED
        yield f"{end!r} behind data", CHUNKED + b"5\r\nhello" + end + b"0\r\n\r\n" + SMUGGLED
        yield f"{end!r} behind the last size", CHUNKED + b"0" + end + b"\r\n" + SMUGGLED
        yield f"{end!r} as the last line", CHUNKED + b"0\r\n" + end + SMUGGLED
        yield f"{end!r} behind everything", CHUNKED + b"0\r\n\r\n" + end + SMUGGLED
        yield f"{end!r} behind a plain body", PLAIN + b"hello" + end + SMUGGLED
    for trailer in TRAILERS:
        yield f"trailer {trailer[:40]!r}", CHUNKED + b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n" + SMUGGLED
    inner = b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"
    yield "a request as data", CHUNKED + inner
    yield "a request as data, then one", CHUNKED + inner + SMUGGLED
    yield "a chunk longer than its size", CHUNKED + b"5\r\nhello" + SMUGGLED
    yield "a chunk shorter than its size", CHUNKED + b"20\r\nhello\r\n0\r\n\r\n" + SMUGGLED
    yield "a body shorter than its length", PLAIN + b"hel"
    yield "a body longer than its length", PLAIN + b"hello, and more\r\n\r\n" + SMUGGLED
    yield "a request within the length", PLAIN.replace(b": 5", b": %d" % len(SMUGGLED)) + SMUGGLED
    yield "pipelined", PLAIN + b"hello" + SMUGGLED + SMUGGLED.replace(b"smuggled", b"third")
    yield "pipelined behind chunks", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED
    yield "pipelined behind close", PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"hello" + SMUGGLED
    yield "unfinished behind a request", PLAIN + b"hello" + SMUGGLED[:-4]
    yield "garbage behind a request", PLAIN + b"hello" + b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"
    yield "a response behind a request", PLAIN + b"hello" + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + SMUGGLED
    for cut in range(0, 200, 3):
        whole = CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n" + SMUGGLED
        if cut < len(whole):
            yield f"cut after {cut} bytes", whole[:cut]
