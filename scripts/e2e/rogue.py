#!/usr/bin/env python3
"""A machine that says of every blob that it has it, and then gives something else.

    rogue.py SIZE PORT FILE

The blobs have this SIZE. What FILE says is what it gives: `wrong` bytes, too `short` or too `long` a
body, a `trickle`, `silence` behind the head, or a `redirect`.
"""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

size, port, way_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        way = open(way_file).read().strip()
        if not self.path.startswith("/ollana/blobs/"):
            body = b'{"version":"0.33.0"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            return
        print(self.command, way, self.headers.get("Range", ""), flush=True)
        if way == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:11434/api/tags")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = 0
        if range_ := self.headers.get("Range"):
            first = int(range_.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(size - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.give(way, size - first)
        except OSError:
            pass
        self.close_connection = True

    def give(self, way, left):
        if way == "silence":
            time.sleep(60)
        elif way == "trickle":
            for _ in range(600):
                self.wfile.write(b"x")
                time.sleep(0.1)
        else:
            left += {"wrong": 0, "short": -(left // 2), "long": 4 << 20}[way]
            while left > 0:
                self.wfile.write(os.urandom(min(left, 1 << 20)))
                left -= 1 << 20


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server(("", port), Handler).serve_forever()
