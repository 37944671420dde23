"""Runs desync vectors against ollana; see scripts/desync.sh --help."""

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter

import generated
import public
from daemons import Daemon
from echo import Echo
from judge import Lane

ABOUT = """\
Sends raw requests to ollana in front of a strict upstream and fails when the upstream sees another
sequence of requests than a strict reader of the client's bytes (RFC 9112). Every vector goes
through both proxies (chain) and through the server's alone (server).

Without folders only the built-in vectors run. The others are read where they are:
  --guardian  a checkout of aws/http-desync-guardian  (tests/*.yaml, Apache-2.0)
  --llhttp    a checkout of nodejs/llhttp             (test/request/*.md, MIT)
  --smuggler  a checkout of defparam/smuggler         (configs/*.py, MIT)
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="desync.sh", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bin", default=os.environ.get("OLLANA_BIN"), required="OLLANA_BIN" not in os.environ)
    for name in public.LOADERS:
        variable = f"DESYNC_{name.upper()}"
        parser.add_argument(f"--{name}", metavar="DIR", default=os.environ.get(variable), help=f"or {variable}")
    parser.add_argument("--path", choices=("chain", "server"), help="only this way")
    parser.add_argument("--only", metavar="REGEX", help="only vectors whose source or name matches")
    parser.add_argument("--piece", metavar="BYTES", type=int, default=1 << 20, help="send so many at a time")
    parser.add_argument("--seconds", type=float, default=170, help="stop behind this, as a failure")
    parser.add_argument("--list", action="store_true", help="print what became of every vector")
    return parser.parse_args()


def load(options):
    vectors = list(generated.vectors())
    for name, loader in public.LOADERS.items():
        folder = getattr(options, name)
        if folder:
            loaded = list(loader(folder))
            if not loaded:
                raise SystemExit(f"--{name} {folder}: no vectors there")
            vectors += loaded
    if options.only:
        vectors = [v for v in vectors if re.search(options.only, f"{v.source} {v.name}")]
    return vectors


def names_of(vectors):
    """Host names that occur in the vectors: allowed, so that more than the Host is tested."""
    text = b"\n".join(vector.data for vector in vectors if vector.source in ("llhttp", "http-desync-guardian"))
    found = re.findall(rb"(?im)^host: *([a-z0-9-]+(?:\.[a-z0-9-]+)+)", text)
    names = {name.decode().lower() for name in found} - {"localhost"}
    # Addresses are allowed anyway, and --host doesn't take them.
    return sorted(name for name in names if not re.fullmatch(r"[\d.]+", name))


def start(options, vectors, state):
    hosts = names_of(vectors)
    echo = Echo()
    server = Daemon(options.bin, ["--mode", "server", "--ollama", echo.address], hosts, state)
    client = Daemon(options.bin, ["--mode", "client", "--server", f"127.0.0.1:{server.port}"], hosts, state)
    lanes = [Lane("chain", client, [client, server], echo), Lane("server", server, [server], echo)]
    for lane in lanes:
        if fault := lane.check_serving():
            raise SystemExit(f"{lane.name}: {fault}")
    echo.take()
    return [lane for lane in lanes if options.path in (None, lane.name)], [client, server]


def show(text):
    """Nothing of a vector reaches the terminal as it is."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:400]


def summarise(verdicts):
    """A line per source and way; for labelled sources one per label too."""
    groups = {}
    for verdict in verdicts:
        keys = [(verdict.vector.source, verdict.path)]
        if verdict.vector.label:
            keys.append((f"{verdict.vector.source} {verdict.vector.label}", verdict.path))
        for key in keys:
            count = groups.setdefault(key, Counter())
            count["all"] += 1
            count["failed"] += bool(verdict.fault)
            count["forwarded"] += verdict.forwarded > 0
            count["refused"] += verdict.refused
            count["silent"] += not verdict.forwarded and not verdict.refused
    for (source, path), count in sorted(groups.items()):
        word = "FAIL" if count["failed"] else "ok  "
        print(
            f"{word} {source} ({path}): {count['all']} vectors, {count['forwarded']} with requests passed on, "
            f"{count['refused']} with a refusal, {count['silent']} unfinished, {count['failed']} failed"
        )


def main():
    options = arguments()
    vectors = load(options)
    started = time.monotonic()
    verdicts, daemons, late = [], [], 0
    with tempfile.TemporaryDirectory() as state:
        lanes, daemons = start(options, vectors, state)
        for vector in vectors:
            for lane in lanes:
                if time.monotonic() - started > options.seconds:
                    late += 1
                    continue
                verdict = lane.judge(vector, options.piece)
                verdicts.append(verdict)
                if verdict.fault or options.list:
                    word = "FAIL" if verdict.fault else "ok  "
                    what = verdict.fault or f"{verdict.forwarded} passed on, refused: {verdict.refused}"
                    print(show(f"{word} {lane.name}: {vector.source}: {vector.name}: {what}"))
        panics = [line for daemon in daemons for line in daemon.panics()]
        codes = [daemon.stop() for daemon in daemons]
    summarise(verdicts)
    failed = sum(bool(verdict.fault) for verdict in verdicts)
    for line in panics:
        print(show(f"FAIL a thread panicked: {line}"))
    if any(codes):
        print(f"FAIL ollana ended with {codes}")
    if late:
        print(f"FAIL out of time: {late} vectors weren't sent")
    failed += len(panics) + any(codes) + bool(late)
    print(f"{len(verdicts) - sum(bool(v.fault) for v in verdicts)} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
