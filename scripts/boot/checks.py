"""What a new user does on a clean machine, for each kind of init. Started by scripts/boot.sh, inside
the namespace that is the machines' LAN."""

import os
import re
import socket
import subprocess
import sys
import time

from machine import Machine

CACHE, WORK, OLLANA = sys.argv[1:4]
HERE = os.path.dirname(os.path.abspath(__file__))
# What they are asked to do; slow machines are software all the way down.
PATIENCE = 60
CHAT = """curl -sS http://127.0.0.1:11434/api/generate -d '{"model":"tiny","prompt":"Hello"}'"""
STARTED = "ollana runs. If something doesn't work: ollana doctor"
failed = []
passed = 0


def told(is_well, what, detail=""):
    global passed
    if is_well:
        passed += 1
        print(f"ok   {what}", flush=True)
    else:
        failed.append(what)
        print(f"FAIL {what}\n     " + detail[-2000:].replace("\n", "\n     "), flush=True)
    return is_well


class Lan:
    """The machine with Ollama, on the other side of the cable."""

    def __init__(self):
        self.environment = {"PATH": os.environ["PATH"], "HOME": WORK, "OLLANA_STATE_DIR": f"{WORK}/state"}
        self.ollama = self.start("ollama.log", sys.executable, f"{HERE}/ollama.py")
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", 11434)):
            if time.monotonic() > deadline:
                raise RuntimeError("the stand-in for Ollama does not listen")
            time.sleep(0.05)
        self.ollana = self.serve()

    def start(self, log, *command):
        with open(os.path.join(WORK, log), "ab") as file:
            return subprocess.Popen(command, env=self.environment, stdout=file, stderr=file)

    def serve(self):
        return self.start("ollana.log", OLLANA)

    def restart(self):
        self.stop()
        self.ollana = self.serve()

    def stop(self):
        self.ollana.terminate()
        self.ollana.wait()

    def pair(self):
        command = [OLLANA, "pair"]
        pairing = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        for line in pairing.stdout:
            if code := re.search(r"ollana pair (\S+-\S+)", line):
                return pairing, code[1]
        raise RuntimeError("no code to pair")

    def unpair(self, name):
        subprocess.run([OLLANA, "unpair", name], env=self.environment, stdout=subprocess.DEVNULL, check=True)


class User:
    """Somebody at the machine's keyboard."""

    def __init__(self, machine):
        self.machine = machine

    def does(self, what, command, *patterns, code=0, typed="", within=None):
        """One command: its exit code and what it has to say. `within` tries for so long."""
        deadline = time.monotonic() + (within or 0)
        while True:
            begun = time.monotonic()
            got, text = self.machine.run(command, typed, PATIENCE)
            missing = [p for p in patterns if not re.search(p, text, re.DOTALL | re.MULTILINE)]
            is_well = got == code and not missing
            if is_well or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        took = time.monotonic() - begun
        told(is_well, f"{what} ({took:.1f} s)", f"$ {command}\n{text}\n[exit {got}] missing: {missing}")
        return text

    def chats(self, what, within=20):
        lines = r'^\{.*"Hello ".*\n.*\n.*\n.*\n\{.*"done": true'
        self.does(what, CHAT, lines, within=within)

    def comes_back(self, what, command):
        self.machine.say(f"{command}\n")
        time.sleep(5)
        seconds = self.machine.wait_for_shell()
        told(True, f"{what}: a shell after {seconds:.0f} s")


def unpack(user):
    command = "tar -xf /dev/vdb -C /home/me --no-same-owner && chown -R me: /home/me && ls /home/me/ollana"
    user.does("a release folder is unpacked", command, "install.sh")


def installs(user, init):
    """README, Install: the question is answered by a person."""
    user.does(
        f"install.sh asks, installs and starts ({init})",
        'su - me -c "cd ollana && sudo ./install.sh"',
        "This will", rf"start ollana now and at every boot \({init}\)", re.escape(STARTED),
        typed="y\n",
    )
    user.chats("the first answer comes from the other machine", within=20)
    user.does("ollana status, as any user", 'su - me -c "ollana status"', r"10\.77\.0\.1 +ready", r"^keys +none")
    user.does("ollana doctor, as any user", 'su - me -c "ollana doctor"', "all is well", "not encrypted")
    user.does("sudo ollana doctor", "ollana doctor", "all is well", "process [0-9]+")
    user.does("the manual is there", "ls /usr/local/share/man/man1/ollana.1 /usr/local/share/bash-completion/completions/ollana")


def finds_faults(user, lan):
    """ollana help trouble: what the doctor finds, and whether its advice helps."""
    user.does("doctor: the cable is out", "ip link set eth0 down; ollana doctor", "WRONG.*(no interface to broadcast on|eth0 is down)", code=1)
    user.does("the cable is back", "ip link set eth0 up; ifup --force eth0 2>/dev/null; true")
    user.chats("it works again by itself")
    user.does("doctor: a firewall here", "ufw --force enable >/dev/null; ollana doctor", "ufw is on",
              r"ufw allow proto udp from any port 11436", code=1)
    user.does("its advice helps", "ufw allow proto udp from any port 11436 >/dev/null; ollana doctor", "all is well")
    user.does("the firewall is off again", "ufw --force disable")
    lan.stop()
    user.does("doctor: nobody serves", "ollana doctor", "WRONG|warn ", "fix: ", code=1)
    user.does("requests are told so", f"{CHAT} -o /dev/null -w '%{{http_code}}'", "503", within=10)
    lan.restart()
    user.chats("it works again when the server is back")


def pairs(user, lan):
    pairing, code = lan.pair()
    user.does("sudo ollana pair CODE", f"ollana pair {code}", "paired with ")
    try:
        pairing.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        pairing.kill()
        return told(False, "and the other machine's ollana pair ends")
    user.does("the service takes the key up: the hop is encrypted", "ollana status",
              r"10\.77\.0\.1 +ready.* yes ", "only machines that have one", within=20)
    user.chats("an encrypted answer")
    user.does("sudo ollana doctor knows the keys", "ollana doctor", "all is well", ", encrypted,")
    user.does("anybody's doctor doesn't, and says so", 'su - me -c "ollana doctor"', "all is well", "may see 0")
    user.does("all of the state is the service's",
              "cd /var/lib/ollana/; find . -mindepth 1 ! -user $(stat -c %u .) | grep .", code=1)
    name = os.uname().nodename
    user.does("sudo ollana unpair", f"ollana unpair {name}", "is not paired any more")
    lan.unpair("clean")
    user.chats("and in clear again")


def systemd(user, lan):
    installs(user, "systemd")
    user.does("systemctl status", "systemctl status ollana --no-pager", r"loaded .*; enabled;", r"active \(running\)")
    user.does("readiness and watchdog", "systemctl show ollana -p Type -p WatchdogUSec -p WatchdogTimestamp -p StatusText",
              "^Type=notify", "^WatchdogUSec=30s", "^WatchdogTimestamp=.*20", "^StatusText=1 server known")
    user.does("a user of its own, with its own folders", "ps -o user= -C ollana; ls -ld /var/lib/private/ollana",
              r"\A(?!root)\w+\n", "^drwx------")
    user.does("kill -9", "kill -9 $(systemctl show -P MainPID ollana)")
    user.chats("restarted by systemd")
    user.does("a frozen one", "kill -STOP $(systemctl show -P MainPID ollana); systemctl show -P NRestarts ollana", r"\A1\Z")
    user.does("is restarted by the watchdog", "systemctl show -P NRestarts ollana", r"\A2\Z", within=60)
    user.chats("and answers")
    user.does("SIGHUP ends nothing", "systemctl kill -s HUP ollana; sleep 1; systemctl show -P NRestarts -P ActiveState ollana",
              r"\A(2\nactive|active\n2)\Z")
    user.does("the journal is readable", "journalctl -u ollana -o cat --no-pager", "ready mode=client", "server up name=")
    user.does("systemctl stop", "systemctl stop ollana; systemctl show -P Result -P ActiveState ollana", r"\A(success\ninactive|inactive\nsuccess)\Z")
    user.does("systemctl start", "systemctl start ollana")
    user.chats("and answers")
    pairs(user, lan)
    finds_faults(user, lan)
    takeover(user)
    user.comes_back("reboot", "systemctl reboot")
    user.does("the machine is up", "systemctl is-system-running --wait", "running", within=60)
    user.chats("the service is back by itself")
    user.does("install.sh --uninstall", "/home/me/ollana/install.sh --uninstall --yes; hash -r; ls /usr/local/bin; systemctl cat ollana",
              "removed", "No files found", code=1)
    deb(user)


def takeover(user):
    """With a stand-in that runs as /usr/local/bin/ollama under a unit like Ollama's own."""
    unit = (r"[Unit]\nAfter=network-online.target\n[Service]\nExecStart=/usr/local/bin/ollama serve\nWorkingDirectory=/srv\n"
            r"Environment=PYTHONHOME=/usr\nUser=me\nRestart=always\nRestartSec=3\n[Install]\nWantedBy=default.target\n")
    user.does("an Ollama is installed",
              f"cp $(readlink -f /usr/bin/python3) /usr/local/bin/ollama; cp /home/me/ollana/ollama.py /srv/serve; "
              f"printf '{unit}' >/etc/systemd/system/ollama.service; systemctl daemon-reload; "
              "systemctl restart ollana; systemctl enable --now ollama 2>&1")
    user.does("ollana leaves Ollama's port to it and shares it", "ollana status", r"^this machine +127\.0\.0\.1:11434 +ready",
              "server for", within=30)
    user.does("ollana doctor", "ollana doctor", "all is well", "answers at http://127.0.0.1:11434")
    user.does("a mode that the doctor has advised", "echo OLLANA_MODE=server >>/etc/default/ollana; systemctl restart ollana")
    user.does("sudo ollana takeover", "ollana takeover", "Ollama moves to 127.0.0.1:11438", "^done$", typed="y\n")
    user.does("both servers at Ollama's port", "ollana status", "^this machine +127.0.0.1:11438 +ready", r"10\.77\.0\.1 +ready", within=30)
    user.does("doctor after a takeover", "ollana doctor", "all is well", "answers at http://127.0.0.1:11438")
    user.does("sudo ollana takeover --undo", "ollana takeover --undo", "^done$", typed="y\n")
    user.does("as it was before", "ollana status", r"^this machine +127\.0\.0\.1:11434 +ready", within=30)
    user.does("without that mode", "sed -i /^OLLANA_MODE/d /etc/default/ollana; systemctl restart ollana")
    user.does("Ollama is removed", "systemctl disable --now ollama; rm /usr/local/bin/ollama")
    user.chats("and ollana is a client again", within=40)


def deb(user):
    user.does("dpkg -i", "dpkg -i /home/me/ollana_*_amd64.deb 2>&1", "Setting up ollana")
    user.does("enabled and running", "hash -r; systemctl is-enabled ollana; systemctl is-active ollana", "enabled\nactive")
    user.chats("an answer through the package's service")
    user.does("dpkg -P leaves nothing", "mkdir -p /etc/ollana; dpkg -P ollana >/dev/null 2>&1; ls -d /var/lib/ollana /var/lib/private/ollana /etc/ollana /usr/bin/ollana 2>/dev/null", r"\A\Z", code=2)


def scripts(user, lan, service):
    user.does("status", f"{service} status", "runs, pid|started")
    user.does("runs as a user of its own", "ps -o user= -C ollana", r"\Aollana\Z")
    user.does("restart", f"{service} restart")
    user.chats("and answers")
    pairs(user, lan)
    user.does("stop", f"{service} stop; pgrep -x ollana", code=1)
    user.does("start", f"{service} start")
    user.chats("and answers")


def sysv(user, lan):
    installs(user, "sysv")
    scripts(user, lan, "service ollana")
    user.does("the log is opened anew", "mv /var/log/ollana/ollana.log /tmp/old; service ollana reload; sleep 1; ls /var/log/ollana/ollana.log")
    finds_faults(user, lan)
    user.comes_back("reboot", "reboot")
    user.chats("the service is back by itself", within=60)
    user.does("install.sh --uninstall", "/home/me/ollana/install.sh --uninstall --yes; ls /etc/rc2.d /usr/local/bin | grep ollana", "removed", code=1)


def openrc(user, lan):
    installs(user, "openrc")
    scripts(user, lan, "rc-service ollana")
    user.does("kill -9", "kill -9 $(pgrep -xo ollana)")
    user.chats("restarted by supervise-daemon")
    user.does("the log is opened anew", "mv /var/log/ollana/ollana.log /tmp/old; rc-service ollana rotate; sleep 1; ls /var/log/ollana/ollana.log")
    user.comes_back("reboot", "reboot")
    user.chats("the service is back by itself", within=60)
    user.does("install.sh --uninstall", "/home/me/ollana/install.sh --uninstall --yes; rc-update show | grep ollana", "removed", code=1)


def main():
    kinds = {"systemd": systemd, "debian13": systemd, "sysv": sysv, "openrc": openrc}
    lan = Lan()
    try:
        for name in sys.argv[4:] or kinds:
            print(f"--- {name}", flush=True)
            suite = "trixie" if name == "debian13" else "bookworm"
            machine = Machine(f"{CACHE}/{name}.img", suite, f"{WORK}/files.tar", CACHE, WORK, name)
            try:
                told(True, f"a clean machine: a shell after {machine.wait_for_shell():.0f} s")
                user = User(machine)
                unpack(user)
                kinds[name](user, lan)
            except (TimeoutError, RuntimeError) as error:
                told(False, f"{name}: {error}", open(machine.console, errors="replace").read())
            finally:
                machine.end()
            lan.restart()
    finally:
        lan.ollana.kill()
        lan.ollama.kill()
    print(f"{passed} passed, {len(failed)} failed", flush=True)
    return bool(failed)


sys.exit(main())
