"""A stand-in for `ollama serve` with one model, which answers word by word."""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = {"name": "tiny:latest", "model": "tiny:latest", "size": 91739413, "digest": "1" * 64}
WORDS = ["Hello ", "from ", "the ", "other ", "machine."]
ANSWERS = {
    "/api/version": {"version": "0.13.1"},
    "/api/tags": {"models": [MODEL]},
    "/api/ps": {"models": []},
    "/v1/models": {"object": "list", "data": []},
}


class Ollama(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def head(self, *field):
        self.send_response(200)
        self.send_header(*field)
        self.end_headers()

    def do_GET(self):
        host = self.headers.get("Host", "").rsplit(":")[0]
        if host not in ("localhost", "127.0.0.1"):  # as Ollama does
            self.send_response(403)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        text = json.dumps(ANSWERS[self.path]) if self.path in ANSWERS else "Ollama is running"
        self.head("Content-Length", str(len(text)))
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    do_HEAD = do_GET

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.head("Transfer-Encoding", "chunked")
        for at, word in enumerate(WORDS):
            line = {"model": "tiny", "response": word, "done": False}
            if at + 1 == len(WORDS):
                line |= {"done": True, "eval_count": len(WORDS), "eval_duration": 250_000_000}
            text = json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")


port = int(os.environ.get("OLLAMA_HOST", ":11434").rsplit(":")[-1])
ThreadingHTTPServer.request_queue_size = 1024  # Of many that come at once, Python turns away all but five.
ThreadingHTTPServer(("127.0.0.1", port), Ollama).serve_forever()
