"""Sends one vector and judges what became of it."""

import time
from dataclasses import dataclass

from daemons import Peer
from strict import read_all

# A refusal for these reasons is about who asks for what, not about how it is written; the
# connection may go on behind it if the request was whole.
OF_POLICY = ("host", "loop", "origin", "policy", "key")
# So long is waited for an answer that is due, for a refusal, and for one to an unfinished request, which
# never comes.
DUE = 5
REFUSAL = 0.5
QUIET = 0.03


@dataclass
class Vector:
    """Bytes that a client sends, and where they come from."""

    source: str
    name: str
    data: bytes
    #: What the source calls it, if it does.
    label: str = ""


@dataclass
class Verdict:
    """Whether all is well, and if not, what isn't."""

    vector: Vector
    path: str
    fault: str = ""
    forwarded: int = 0
    refused: bool = False


class Lane:
    """One way to the upstream: both proxies, or the server's alone."""

    def __init__(self, name, entry, daemons, echo):
        self.name = name
        self.entry = entry
        self.daemons = daemons
        self.echo = echo
        self.sentinels = 0
        self.steady = Peer(entry.port)

    def judge(self, vector, piece):
        intended = read_all(vector.data)
        peer = Peer(self.entry.port)
        peer.send(vector.data, piece)
        answers, ended = collect(peer, intended)
        peer.close()
        fault = self.check_serving()
        seen, complaints = self.echo.take()
        seen = [request for request in seen if not request.target.startswith(b"/sentinel/")]
        verdict = Verdict(vector, self.name, forwarded=len(seen))
        verdict.refused = any(answer.cause for answer in answers)
        verdict.fault = "; ".join(complaints) or fault or compare(intended, answers, ended, seen)
        return verdict

    def check_serving(self):
        """A normal request on a connection of its own: served, and answered with its own answer."""
        for daemon in self.daemons:
            if daemon.has_exited():
                raise SystemExit("ollana exited:\n" + "".join(daemon.lines[-20:]))
        self.sentinels += 1
        target = f"/sentinel/{self.sentinels}"
        request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(2):
            self.steady.send(request, 65536)
            body = self.body_of(self.steady)
            if body is not None:
                return "" if f'"{target}"'.encode() in body else f"{target} got another's answer"
            self.steady.close()
            self.steady = Peer(self.entry.port)
        return "the proxy doesn't serve a normal request any more"

    @staticmethod
    def body_of(peer):
        deadline = time.monotonic() + 3
        while b"}" not in peer.data:
            if not peer.fill(deadline):
                return None
        body, peer.data = peer.data, b""
        return body


def collect(peer, intended):
    """The answers to a vector, and whether the connection was closed behind them."""
    answers = []
    while True:
        at = len(answers)
        wait = QUIET
        if at < len(intended.requests):
            wait = DUE
        elif at == len(intended.requests) and intended.tail == "refused":
            wait = REFUSAL
        is_head = at < len(intended.requests) and intended.requests[at].method == b"HEAD"
        answer = peer.answer(is_head, wait)
        if answer is None:
            return answers, peer.has_ended
        answers.append(answer)
        is_last = answer.cause not in (None, *OF_POLICY) or answer.fields.get(b"connection") == b"close"
        if is_last:
            return answers, peer.ends(1)
        if at + 1 >= len(intended.requests) and intended.tail == "end":
            return answers, False


def compare(intended, answers, ended, seen):
    """What is wrong, or nothing: every answer accounts for one intended request, in order."""
    at = passed = 0
    for number, answer in enumerate(answers):
        is_last = number + 1 == len(answers)
        if not answer.is_whole:
            return f"answer {number + 1} was cut"
        if is_preflight(answer, intended.requests[at:]):
            at += 1
        elif answer.cause is None:
            if at >= len(intended.requests) or passed >= len(seen):
                return extra(intended, seen) or f"answer {number + 1} ({answer.status}) to nothing"
            if wrong := differ(intended.requests[at], seen[passed]):
                return wrong
            if int(answer.fields.get(b"x-number", b"0")) != seen[passed].number:
                return f"answer {number + 1} belongs to another request"
            at, passed = at + 1, passed + 1
        elif answer.fields.get(b"via"):
            return f"the second hop refused what the first passed on: {answer.status} {answer.cause}"
        elif not 400 <= answer.status <= 599 or answer.cause in ("upstream", "unreached"):
            return f"no refusal but {answer.status} {answer.cause}"
        elif answer.cause in OF_POLICY:
            at += 1
        elif not is_last or not ended:
            return f"the connection stays open behind {answer.status} {answer.cause}"
        else:
            at = len(intended.requests)
    if passed < len(seen):
        return extra(intended, seen) or f"{len(seen)} requests forwarded, {passed} answered"
    if at < len(intended.requests) and not (answers and ended):
        return f"no answer to {intended.requests[at]}"
    return ""


def is_preflight(answer, due):
    """Whether the proxy gave the answer that Ollama gives to any OPTIONS; the echo counts its own."""
    return answer.status == 204 and due and due[0].method == b"OPTIONS" and b"x-number" not in answer.fields


def extra(intended, seen):
    """Names a request that reached the upstream although the client never sent it."""
    meant = [request.identity() for request in intended.requests]
    for request in seen:
        if request.identity() not in meant:
            word = "SMUGGLED" if b"/smuggled" in request.target else "not intended"
            return f"{word}: {request} (strict reading: {intended.tail} {intended.reason})"
    return ""


def differ(meant, seen):
    if meant.identity() != seen.identity():
        return f"{meant} arrived as {seen}"
    if meant.end_to_end() != seen.end_to_end():
        return f"fields of {meant} changed: {meant.end_to_end()} arrived as {seen.end_to_end()}"
    return ""
