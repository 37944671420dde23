"""Public vectors, read where they are: each loader takes the folder of a checkout.

Nothing of them is copied into this repository; their own licences hold.
"""

import re
from pathlib import Path

from bodies import SMUGGLED
from judge import Vector

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", '"': '"', "\\": "\\", "/": "/"}


def scalar(text):
    """A YAML scalar of one line: plain, or in single or double quotes."""
    text = text.strip()
    if text.startswith("'"):
        return text[1:].rsplit("'", 1)[0].replace("''", "'")
    if not text.startswith('"'):
        return re.sub(r"\s+#.*$", "", text)

    def escape(found):
        code = found[1]
        return chr(int(code[1:], 16)) if code[0] in "xu" else ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)", escape, text[1:].rsplit('"', 1)[0])


def cases(text):
    """The subset of YAML that http-desync-guardian's tests are written in."""
    case = header = None
    for line in text.splitlines():
        found = re.match(r"^( *)(- )?([a-z_]+):(?: (.*))?$", line)
        if not found:
            continue
        depth, starts, key = len(found[1]), bool(found[2]), found[3]
        value = scalar(found[4] or "")
        if depth == 0 and starts:
            if case:
                yield case
            case, header = {"name": value, "headers": []}, None
        elif starts and key == "name":
            header = [value, ""]
            case["headers"].append(header)
        elif key == "value" and header:
            header[1] = value
        elif key == "tier" and depth == 4:
            case["label"] = value
        elif depth == 2 and key in ("uri", "method", "version"):
            case[key] = value
    if case:
        yield case


def raw(text):
    """Bytes as the tests mean them: one for each character up to U+00FF."""
    return text.encode("latin-1", "replace")


def guardian(folder):
    """aws/http-desync-guardian: cases with a label, sent with bodies for both readings."""
    for path in sorted(Path(folder).glob("tests/*.yaml")):
        for case in cases(path.read_text(encoding="utf-8")):
            fields = b"".join(raw(name) + b":" + raw(value) + b"\r\n" for name, value in case["headers"])
            if not re.search(rb"(?im)^host:", fields):
                fields = b"Host: localhost\r\n" + fields
            line = b" ".join(raw(case.get(key, "")) for key in ("method", "uri", "version"))
            head = line.rstrip(b" ") + b"\r\n" + fields + b"\r\n"
            length = re.search(rb"(?i)content-length[^0-9\r\n]*(\d{1,5})", fields)
            size = int(length[1]) if length else 0
            for kind, body in (
                ("chunks", b"0\r\n\r\n" + SMUGGLED),
                ("length", b"x" * size + SMUGGLED),
                ("no body", SMUGGLED),
            ):
                name = f"{path.stem}: {case['name']} [{kind}]"
                yield Vector("http-desync-guardian", name, head + body, case.get("label", ""))


def llhttp(folder):
    """nodejs/llhttp: the inputs of its request fixtures, as they are, with the Host that most of them
    lack, finished, and with a request behind them."""
    for path in sorted(Path(folder).glob("test/request/*.md")):
        text = path.read_text(encoding="utf-8")
        for number, found in enumerate(re.finditer(r"^```http\n(.*?)^```", text, re.M | re.S)):
            title = re.findall(r"^#+ (.*)$", text[: found.start()], re.M)
            name = f"{path.stem}: {title[-1] if title else number}"
            inputs = {"": fixture(found[1])}
            if not re.search(rb"(?im)^host:", inputs[""]):
                inputs[" with Host"] = inputs[""].replace(b"\r\n", b"\r\nHost: localhost\r\n", 1)
            for host, data in inputs.items():
                for kind, end in (
                    ("as it is", b""),
                    ("one more", SMUGGLED),
                    ("finished, one more", b"\r\n\r\n" + SMUGGLED),
                ):
                    yield Vector("llhttp", f"{name} [{kind}{host}]", data + end)


def fixture(text):
    """The escapes of llhttp's own reader of these files."""
    text = re.sub(r"\n$", "", text)
    text = re.sub(r"\\\n", "", text)
    text = text.replace("\n", "\r\n")
    for code, byte in (("r", "\r"), ("n", "\n"), ("t", "\t"), ("f", "\f")):
        text = text.replace("\\" + code, byte)
    text = re.sub(r"\\x([0-9a-fA-F]+)", lambda found: chr(int(found[1], 16) & 0xFF), text)
    text = re.sub(r"\\([0-7]{1,3})", lambda found: chr(int(found[1], 8) & 0xFF), text)
    # Inline JavaScript: only repeated strings occur.
    repeat = r"""\$\{\s*['"](.*?)['"]\.repeat\((\d+)\)\s*\}"""
    text = re.sub(repeat, lambda found: found[1] * int(found[2]), text)
    return text.encode("utf-8", "surrogateescape")


class Template:
    """Stands in for smuggler's Payload, which its configurations fill in."""

    header = body = host = None


def smuggler(folder):
    """defparam/smuggler: its disguises of Transfer-Encoding, in both directions."""
    chunked = "0\r\n\r\n" + SMUGGLED.decode()
    hidden = "%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED.decode())
    for path in sorted(Path(folder).glob("configs/*.py")):
        mutations = {}
        # The configurations are programs; they only fill `mutations`.
        exec(path.read_text(encoding="utf-8"), {"mutations": mutations, "Payload": Template})  # noqa: S102
        for name, template in mutations.items():
            for kind, body, length in (
                ("CL.TE", chunked, len(chunked)),
                ("TE.CL", hidden, len(hidden) - len(SMUGGLED) - 7),
                ("CL of nothing", chunked, 0),
            ):
                text = template.header + "\r\n" + body
                text = text.replace("__METHOD__", "POST").replace("__ENDPOINT__", "/first")
                text = text.replace("__RANDOM__", "1").replace("__HOST__", "localhost")
                text = text.replace("__REPLACE_CL__", str(length))
                yield Vector("smuggler", f"{path.stem}: {name} [{kind}]", text.encode("latin-1", "replace"))


LOADERS = {"guardian": guardian, "llhttp": llhttp, "smuggler": smuggler}
