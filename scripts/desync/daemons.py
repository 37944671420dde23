"""Starts ollana in both modes and talks to it, byte by byte."""

import os
import re
import socket
import subprocess
import threading
import time


class Daemon:
    """One ollana; its stderr is kept, and an exit before `stop` is a failure."""

    def __init__(self, binary, arguments, hosts, state):
        flags = ["--listen", "127.0.0.1:0", "--discovery-port", "0", "--state-dir", state]
        for host in hosts:
            flags += ["--host", host]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OLLANA_", "OLLAMA_"))}
        self.process = subprocess.Popen(
            [binary, *arguments, *flags],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines = []
        self.port = None
        self.is_ready = threading.Event()
        threading.Thread(target=self.read_log, daemon=True).start()
        if not self.is_ready.wait(10) or self.port is None:
            raise SystemExit("ollana didn't start: " + "".join(self.lines))

    def read_log(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r" listen=127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                self.is_ready.set()
        self.is_ready.set()

    def has_exited(self):
        return self.process.poll() is not None

    def panics(self):
        return [line.strip() for line in self.lines if "panicked" in line]

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None


class Answer:
    """One response: its status, its fields, and whether it came whole."""

    def __init__(self, head):
        lines = head.split(b"\r\n")
        self.status = int(lines[0].split(b" ")[1])
        self.fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            self.fields[name.lower()] = value.strip()
        self.is_whole = True

    @property
    def cause(self):
        """Why ollana refused, or None for an answer of the upstream."""
        cause = self.fields.get(b"x-ollana-error")
        return cause.decode() if cause is not None else None


class Peer:
    """A client's connection that reads answers without trusting them."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""
        self.has_ended = False

    def send(self, data, piece):
        """Sends all of it, in pieces; an early close by the other side is no error here."""
        try:
            for at in range(0, len(data), piece):
                self.socket.sendall(data[at : at + piece])
        except OSError:
            pass

    def fill(self, deadline):
        """Reads once; False at the deadline and at the end."""
        left = deadline - time.monotonic()
        if self.has_ended or left <= 0:
            return False
        self.socket.settimeout(left)
        try:
            more = self.socket.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            more = b""
        self.data += more
        self.has_ended = not more
        return bool(more)

    def answer(self, is_head, wait):
        """The next response but 1xx, or None if none comes in time."""
        deadline = time.monotonic() + wait
        while b"\r\n\r\n" not in self.data:
            if not self.fill(deadline):
                return None
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        answer = Answer(head)
        if answer.status < 200:
            return self.answer(is_head, wait)
        # A refused head may have been anything, so its answer has a body.
        if not is_head or answer.cause == "request":
            length = int(answer.fields.get(b"content-length", b"0"))
            while len(self.data) < length:
                if not self.fill(time.monotonic() + 2):
                    answer.is_whole = False
                    break
            self.data = self.data[length:]
        return answer

    def ends(self, wait):
        """Whether the other side closes in time, without another byte."""
        deadline = time.monotonic() + wait
        while not self.has_ended and not self.data and self.fill(deadline):
            pass
        return self.has_ended and not self.data

    def close(self):
        self.socket.close()
