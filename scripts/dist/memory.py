"""Measures the memory of a client and a server before and after a load: memory.py OLLANA IDLE LOADED, the
most KB that each may have at rest. The load: many streams at a time, large bodies, clients that hang up."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

OLLANA, IDLE, LOADED = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
STAND_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "boot", "ollama.py")
CHAT = "/api/generate"
children = []


def free_port(kind):
    with socket.socket(type=kind) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder, *options):
    """A daemon, and the port where it listens."""
    command = [OLLANA, "serve", "--listen", "127.0.0.1:0", "--state-dir", folder, *options]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]})
    children.append(child)
    for line in child.stderr:
        if found := re.search(r" listen=127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=child.stderr.read, daemon=True).start()
            return child.pid, int(found[1])
    raise RuntimeError(f"{command} ends")


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def ask(port, size, hangs_up=False):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", CHAT, json.dumps({"model": "tiny", "prompt": "x" * size}))
    answer = connection.getresponse()
    text = answer.read(1 if hangs_up else None)
    connection.close()
    return answer.status == 200 and (hangs_up or b'"done": true' in text)


def load(port):
    """As many at once as a busy house has, then as many bytes."""
    for count, size, hangs_up in [(200, 10, False), (200, 10, True), (16, 3_000_000, False)]:
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(ask(port, size, hangs_up)))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == count and all(results), f"{results.count(True)} of {count} requests done"


def main():
    with tempfile.TemporaryDirectory() as folder:
        ollama = free_port(socket.SOCK_STREAM)
        command = [sys.executable, STAND_IN]
        environment = {"OLLAMA_HOST": f":{ollama}"}
        # It complains of clients that hang up.
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        discovery = ["--discovery-port", str(free_port(socket.SOCK_DGRAM))]
        server, at = start(
            f"{folder}/server", "--mode", "server", "--ollama", f"http://127.0.0.1:{ollama}", *discovery
        )
        client, port = start(f"{folder}/client", "--mode", "client", "--server", f"127.0.0.1:{at}", *discovery)
        deadline = time.monotonic() + 30
        while not ask(port, 10):
            assert time.monotonic() < deadline, "no answer through client and server"
            time.sleep(0.1)
        time.sleep(3)
        idle = max(resident(client), resident(server))
        load(port)
        deadline = time.monotonic() + 60  # Threads and connections that idle go after some seconds.
        while (loaded := max(resident(client), resident(server))) > LOADED and time.monotonic() < deadline:
            time.sleep(1)
    print(f"{OLLANA}: {idle} KB of memory idle of {IDLE}, {loaded} after a load of {LOADED}")
    return idle > IDLE or loaded > LOADED


try:
    sys.exit(main())
finally:
    for child in children:
        child.kill()
        child.wait()
