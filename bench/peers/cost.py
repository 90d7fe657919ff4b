#!/usr/bin/env python3
"""Compares the cost of a request with testpmd's, by perf: microseconds per core and kind of work.

    bench/peers/cost.py target/release/sixhop [REQUESTS/S] [ROUNDS]

afxdp and DPDK's testpmd take turns at the same load, on core 0; the client sends from core 1. The
lab is its own, with one address, one reply, and both interfaces coalesced (50 us). Needs root, perf,
and the packages that run.sh names. The stack of each perf sample decides its kind:

    receive   receive work of either interface, in whatever context (veth_poll)
    transmit  the rest of sendto on an AF_XDP socket
    calls     other system calls: testpmd's polling for packets
    own       user space, including waiting for work, but not reading the clock
    else      everything else
"""
import collections
import contextlib
import json
import subprocess
import sys
import tempfile
import time

KINDS = ["receive", "transmit", "calls", "own", "else"]
PREFIX = "2001:db8:1::/64"
TESTPMD = ("dpdk-testpmd --no-huge -m 512 --no-pci -l 0,1 --main-lcore 1 --file-prefix sixhop-cost "
           "--vdev net_af_xdp0,iface=server0 -- --forward-mode=5tswap -a --nb-cores=1 --total-num-mbufs=16384")
SECONDS = 3


def main():
    sixhop = sys.argv[1]
    rate = int(sys.argv[2]) if len(sys.argv) > 2 else 300_000
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    lab = [sixhop, "lab", "--name", "cost"]
    within = lambda side: [*lab, "exec", side, "--"]
    print(f"{rate} requests/s; microseconds per request{'':14}" + "".join(f"{kind:>10}" for kind in KINDS))
    for number in range(1, rounds + 1):
        for who in ["afxdp", "testpmd"]:
            subprocess.run([*lab, "up"], check=True, stdout=subprocess.DEVNULL)
            try:
                with server(sixhop, within, who), tempfile.NamedTemporaryFile() as record:
                    complete = measure(sixhop, within, rate, record.name)
                    for core in [0, 1]:
                        costs = sorted_samples(record.name, core)
                        whole = sum(costs.values()) or 1
                        row = "".join(f"{1e6 / rate * costs[kind] / whole:10.3f}" for kind in KINDS)
                        print(f"{number} {who:8} core {core}, {complete:7.2%} complete{row}", flush=True)
            finally:
                subprocess.run([*lab, "down"], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def server(sixhop, within, who):
    """Starts `who`. For testpmd, Sixhop still holds the address and coalesces the interface."""
    engine = ["afxdp", "--port", "3540"] if who == "afxdp" else ["socket", "--port", "9"]
    serve = subprocess.Popen(
        [*within("server"), sixhop, "serve", "--engine", *engine, "--interface", "server0", "--prefix", PREFIX, "--addresses", "1",
         "--replies", "1", "--bind", "netlink-down", "--coalesce", "50", "--cores", "0", "--stop-on-eof", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    serve.stdout.readline()
    pmd = None
    if who == "testpmd":
        shown = json.loads(subprocess.check_output([*within("server"), "ip", "-j", "-6", "addr", "show", "dev", "server0"]))
        mac = json.loads(subprocess.check_output([*within("server"), "ip", "-j", "link", "show", "dev", "server0"]))[0]["address"]
        for address in [entry["local"] for link in shown for entry in link["addr_info"] if entry["scope"] == "global"]:
            subprocess.run([*within("client"), "ip", "neigh", "replace", address, "lladdr", mac, "dev", "client0"], check=True)
        pmd = subprocess.Popen([*within("server"), *TESTPMD.split()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        if pmd and not any(ask(sixhop, within, 100, 0.1) == 1 for _ in range(30)):
            sys.exit("testpmd answers no request: run its command from run.sh by hand to see why")
        yield
    finally:
        if pmd:
            pmd.communicate(b"\n")
        serve.stdin.close()
        serve.stdout.read()
        serve.wait()


def ask(sixhop, within, rate, seconds, meanwhile=lambda: None):
    """Sends requests for this long. Returns the share that got all replies."""
    load = subprocess.Popen(
        [*within("client"), "taskset", "-c", "1", sixhop, "load", "--interface", "client0", "--prefix", PREFIX, "--addresses", "1",
         "--replies", "1", "--rate", str(rate), "--requests", str(int(seconds * rate)), "--coalesce", "50", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    meanwhile()
    result = json.loads(load.communicate()[0])
    return result["complete"] / result["sent"]


def measure(sixhop, within, rate, record):
    """Sends requests, and records one second in the middle with perf."""
    def profile():
        time.sleep(SECONDS / 3)
        subprocess.run(["perf", "record", "-q", "-a", "-g", "-F", "1999", "-o", record, "sleep", "1"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return ask(sixhop, within, rate, SECONDS, profile)


def sorted_samples(record, core):
    """The number of `core`'s samples of each kind."""
    script = subprocess.run(["perf", "script", "-i", record, "-C", str(core), "-F", "comm,ip,sym"], check=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    counts = collections.Counter()
    for sample in script.split("\n\n"):
        stack = [line.split(None, 1)[1].split("+")[0] for line in sample.splitlines() if line[:1].isspace() and len(line.split()) > 1]
        if stack:
            counts[kind(stack)] += 1
    return counts


def kind(stack):
    if "veth_poll" in stack:
        return "receive"
    if "handle_softirqs" in stack or any("idle" in symbol or "clock_gettime" in symbol for symbol in stack):
        return "else"
    if "xsk_sendmsg" in stack:
        return "transmit"
    return "calls" if any("do_syscall_64" in symbol for symbol in stack) else "own"


main()
