"""Writes the bill of materials (CycloneDX 1.5) of ollana: sbom.py TARGET ... > FILE. It lists the crates
that are built into it or build it, as Cargo.lock has them."""

import json
import os
import subprocess
import sys
import time
import tomllib
import uuid

command = ["cargo", "metadata", "--locked", "--format-version", "1"]
for target in sys.argv[1:]:
    command += ["--filter-platform", target]
metadata = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
with open("Cargo.lock", "rb") as lock:
    sums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.load(lock)["package"]}


def needs(identity):
    """What a crate needs unless it is tested."""
    for edge in nodes[identity]["deps"]:
        if any(kind["kind"] != "dev" for kind in edge["dep_kinds"]):
            yield edge["pkg"]


def reference(identity):
    package = packages[identity]
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(identity):
    package = packages[identity]
    entry = {
        "type": "library",
        "bom-ref": reference(identity),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(identity),
    }
    if package["license"]:
        # Older crates write a slash for "or".
        entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := sums[package["name"], package["version"]]:
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return entry


root = metadata["resolve"]["root"]
seen, left = {root}, [root]
while left:
    new = set(needs(left.pop())) - seen
    seen |= new
    left += new
crates = sorted(seen - {root}, key=reference)
compiler = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
bill = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(map(reference, [root, *crates])))}",
    "version": 1,
    "metadata": {
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))),
        "tools": {"components": [{"type": "application", "name": "rustc", "version": compiler.split()[1]}]},
        # Without an address: the ollana of crates.io is another program.
        "component": {
            "type": "application",
            "bom-ref": "ollana",
            "name": "ollana",
            "version": packages[root]["version"],
            "licenses": [{"expression": packages[root]["license"]}],
        },
    },
    "components": [component(crate) for crate in crates],
    "dependencies": [
        {"ref": "ollana" if crate == root else reference(crate), "dependsOn": sorted(set(map(reference, needs(crate))))}
        for crate in [root, *crates]
    ],
}
json.dump(bill, sys.stdout, indent=1)
print()
