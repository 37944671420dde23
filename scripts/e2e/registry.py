#!/usr/bin/env python3
"""A registry of models for end-to-end runs: what is in an Ollama's folder of models, over TLS.

    registry.py STORE CERTIFICATE CONTROL [PORT]

It answers as registry.ollama.ai does: manifests, the size of a blob for HEAD, and for GET a redirect to
a host of its own, blobs.example, which gives ranges. CONTROL is a file of JSON that is read again all the time:

    rate   bytes per second, of all downloads together
    wrong  digest of a blob, one byte of which comes out wrong
    away   closes every connection, those under way too

One line on stdout for each download: `given DIGEST BYTES`.
"""

import json
import re
import ssl
import sys
import threading
import time
from pathlib import Path

import serving

store, certificate, control_file = sys.argv[1:4]
port = int(sys.argv[4]) if len(sys.argv) > 4 else 443
PIECE = 64 << 10


class Control:
    """What CONTROL says, and the rate that all downloads share."""

    def __init__(self):
        self.lock = threading.Lock()
        self.read_at = self.next_at = 0.0
        self.values = {}

    def get(self, name):
        with self.lock:
            now = time.monotonic()
            if now - self.read_at > 0.05:
                self.read_at = now
                try:
                    self.values = json.loads(Path(control_file).read_text())
                except (OSError, ValueError):
                    pass  # it is being written
            return self.values.get(name)

    def wait(self, size):
        rate = self.get("rate")
        if not rate:
            return
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next_at)
            self.next_at = at + size / rate
        time.sleep(at - now)


control = Control()


class Handler(serving.Handler):
    def do_GET(self):
        self.close_connection = False
        if control.get("away"):
            self.close_connection = True
            return
        manifest = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", self.path)
        blob = re.fullmatch(r"/v2/.+/blobs/(sha256:[0-9a-f]{64})", self.path)
        data = re.fullmatch(r"/data/(sha256:[0-9a-f]{64})", self.path)
        if manifest:
            self.manifest(Path(store, "manifests/registry.ollama.ai", *manifest.groups()))
        elif blob or data:
            digest = (blob or data)[1]
            path = Path(store, "blobs", digest.replace(":", "-"))
            if not path.is_file():
                self.answer(404, b"{}")
            elif blob and self.command == "GET":
                self.answer(307, b"", Location=f"https://blobs.example:{port}/data/{digest}")
            else:
                self.blob(digest, path)
        else:
            self.answer(404, b"{}")

    def manifest(self, path):
        if not path.is_file():
            return self.answer(404, b"{}")
        self.answer(200, path.read_bytes())

    def blob(self, digest, path):
        size = path.stat().st_size
        first, last = self.range_begins(size)
        if self.command == "HEAD":
            return
        given = 0
        try:
            with path.open("rb") as file:
                file.seek(first)
                while first + given <= last:
                    at = first + given
                    piece = bytearray(file.read(min(PIECE, last + 1 - at)))
                    if control.get("wrong") == digest and at <= size // 2 < at + len(piece):
                        piece[size // 2 - at] ^= 1
                    control.wait(len(piece))
                    if control.get("away"):
                        self.close_connection = True
                        return
                    self.wfile.write(piece)
                    given += len(piece)
        except OSError:
            self.close_connection = True
        finally:
            print("given", digest, given)


class Server(serving.Server):
    def __init__(self):
        super().__init__(("", port), Handler)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)

    def finish_request(self, request, client_address):
        # In the connection's own thread: a handshake holds up nobody else.
        with self.tls.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)


Server().serve_forever()
