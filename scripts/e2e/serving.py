"""What the servers of end-to-end runs have in common."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD as GET, but for the body; says nothing of it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, body=b"", **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def range_begins(self, size):
        """Answers with the head of what the request asks for of this many bytes: where that begins, and its
        last byte."""
        first, last = 0, size - 1
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked:
            begin, end = asked.split("-")
            first, last = int(begin), min(int(end or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        return first, last


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # clients come and go


sys.stdout.reconfigure(line_buffering=True)
