"""A machine in qemu, with a root shell on its second serial port."""

import os
import re
import socket
import subprocess
import time

# Around what the shell answers; no program prints it.
MARK = "\x1e"


class Machine:
    def __init__(self, image, suite, files, folder, work, name):
        """The image is never written to; `files` is a tar archive that it sees as /dev/vdb."""
        self.console = os.path.join(work, f"{name}.console")
        path = os.path.join(work, f"{name}.shell")
        acceleration = ["tcg"]
        command = ["qemu-system-x86_64", "-m", "1024", "-smp", "2", "-display", "none", "-no-user-config"]
        for way in acceleration:
            command += ["-accel", way]
        command += [
            "-kernel", f"{folder}/{suite}.kernel", "-initrd", f"{folder}/{suite}.initrd",
            "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet",
            "-drive", f"file={image},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={files},if=virtio,format=raw,readonly=on",
            "-nic", "tap,ifname=lan0,script=no,downscript=no,model=virtio-net-pci",
            "-serial", f"file:{self.console}",
            "-serial", f"unix:{path},server=on,wait=off",
        ]
        self.log = open(os.path.join(work, f"{name}.qemu"), "wb")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.shell = None
        deadline = time.monotonic() + 20
        while self.shell is None:
            shell = socket.socket(socket.AF_UNIX)
            try:
                shell.connect(path)
                self.shell = shell
            except OSError:
                shell.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("qemu does not start") from None
                time.sleep(0.05)
        self.heard = ""

    def hear(self, pattern, seconds):
        """Reads until the pattern comes; returns what came before it, and the match."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.heard, re.DOTALL)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no {pattern!r} in {seconds} s; there is {self.heard[-300:]!r}")
            self.shell.settimeout(left)
            try:
                part = self.shell.recv(65536)
            except TimeoutError:
                continue
            if not part:
                raise RuntimeError("the machine is gone")
            self.heard += part.decode(errors="replace").replace("\r", "")
        before, self.heard = self.heard[: found.start()], self.heard[found.end() :]
        return before, found

    def say(self, text):
        self.shell.settimeout(10)  # While it boots, nobody reads.
        self.shell.sendall(text.encode())

    def wait_for_shell(self, seconds=240):
        """Until somebody can log in: it is asked until it answers."""
        begun = time.monotonic()
        token = str(time.monotonic_ns())
        while True:
            try:
                # The shell joins what is apart here, so an echo of this line is no answer. The login may
                # take a part of it: a quote would wait for the next one.
                self.say(f"\nstty -echo cols 80; set +H; PS1= PS2= TERM=dumb; printf \\\\036%s%s\\\\036 up {token}\n")
                self.hear(f"{MARK}up{token}{MARK}", 2)
                break
            except TimeoutError:
                if time.monotonic() - begun > seconds:
                    raise
        self.run("true")
        return time.monotonic() - begun

    def run(self, command, typed="", seconds=60):
        """Runs a command as root, with `typed` on its terminal. Its exit code, and all it printed."""
        self.say(f"{{ {command}\n}} 2>&1; printf '\\036%d\\036' $?\n")
        if typed:
            time.sleep(0.5)
            self.say(typed)
        text, code = self.hear(f"{MARK}(\\d+){MARK}", seconds)
        return int(code[1]), text.strip("\n")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.shell.close()
        self.log.close()
