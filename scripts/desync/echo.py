"""The upstream: reads strictly, records everything, and never repairs."""

import json
import socket
import threading

from strict import Incomplete, Refused, read_request

# What ollana asks on its own account; no vector asks for any of these.
OWN = (b"/api/version", b"/api/tags", b"/api/ps", b"/v1/models")


class Echo:
    """Listens on loopback; `take()` gives what came since the last call."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.requests = []
        self.complaints = []
        self.count = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def take(self):
        with self.lock:
            seen, self.requests = self.requests, []
            complaints, self.complaints = self.complaints, []
        return seen, complaints

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def complain(self, reason, data):
        with self.lock:
            self.complaints.append(f"the upstream got {reason}: {data[:300]!r}")

    def serve(self, connection):
        data = b""
        with connection:
            while True:
                try:
                    request, length = read_request(data)
                except Incomplete:
                    try:
                        more = connection.recv(65536)
                    except OSError:
                        return
                    if not more:
                        return
                    data += more
                    continue
                except Refused as refusal:
                    self.complain(str(refusal), data)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    return
                data = data[length:]
                try:
                    connection.sendall(self.answer(request))
                except OSError:
                    return

    def answer(self, request):
        number = self.record(request)
        facts = {
            "version": "0.0.0",
            "number": number,
            "target": request.target.decode("latin-1"),
            "length": len(request.body),
        }
        body = json.dumps(facts).encode()
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"X-Number: {number}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + (b"" if request.method == b"HEAD" else body)

    def record(self, request):
        """Notes a request unless it is ollana's own; returns its number, which no other one has."""
        if request.values(b"host") != [self.address.encode()]:
            self.complain("a foreign Host", repr(request.fields).encode())
        if not (request.target.startswith(b"/") or request.target == b"*"):
            self.complain("a target that isn't a path", request.target)
        with self.lock:
            self.count += 1
            request.number = self.count
            if request.target not in OWN or request.body:
                self.requests.append(request)
            return request.number
