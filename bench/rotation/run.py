#!/usr/bin/env python3
"""Measures the cost of rotation, and its effect on response times, in a lab of its own. Needs root.

    bench/rotation/run.py              a million clients, steps of 10 s
    bench/rotation/run.py --clients 10000 --rotate 1 --seconds 600 --replies 10
                                       ten minutes in steps of a second
    bench/rotation/run.py --bind netlink-batch --engine socket-gso --clients 1000

Runs each setting without rotation, where a step lasts a week, and with it. Everything else is the
same. Prints a line of JSON per run, then a table. The exit status is 1 if a request was lost, a step
was late, or more than three addresses of a client were live.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

LAB = f"rotation{os.getpid()}"
PREFIX = "2001:db8:1::/64"
WEEK = 7 * 86400


def arguments():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--sixhop", default="target/release/sixhop")
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--rotate", type=int, default=10, help="seconds per step")
    parser.add_argument("--seconds", type=int, default=45, help="seconds of load")
    parser.add_argument("--rate", type=int, default=20_000, help="requests per second")
    parser.add_argument("--replies", type=int, nargs="+", default=[10, 1])
    parser.add_argument("--bind", default="live-map")
    parser.add_argument("--engine", default="afxdp")
    parser.add_argument("--server-core", default="0")
    parser.add_argument("--client-core", default="1")
    parser.add_argument("--only-rotation", action="store_true", help="leave out the run without rotation")
    return parser.parse_args()


def memory(pid):
    """Resident memory of a process in KiB: now, and its peak."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return [int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")]


def run(flags, secret, rotate, replies):
    lab = [flags.sixhop, "lab", "--name", LAB]
    addresses = ["--prefix", PREFIX, "--schedule", "mt6d", "--clients", str(flags.clients)]
    addresses += ["--rotate", f"{rotate}s", "--secret", secret]
    serve = [*lab, "exec", "server", "--", flags.sixhop, "serve", "--interface", "server0", *addresses]
    serve += ["--bind", flags.bind, "--engine", flags.engine, "--replies", str(replies), "--cores", flags.server_core]
    load = [*lab, "exec", "client", "--", "taskset", "-c", flags.client_core, flags.sixhop, "load"]
    load += ["--interface", "client0", *addresses, "--rate", str(flags.rate), "--replies", str(replies)]
    load += ["--requests", str(flags.rate * flags.seconds), "--json"]

    server = subprocess.Popen([*serve, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        ready = json.loads(server.stdout.readline())
        rotations, resident, end = [], [], threading.Event()

        def listen():
            for line in server.stdout:
                event = json.loads(line)
                if event["event"] == "rotation":
                    rotations.append(event)

        def watch():
            while not end.wait(1):
                resident.append(memory(server.pid))

        listener = threading.Thread(target=listen)
        watcher = threading.Thread(target=watch)
        listener.start()
        watcher.start()
        result = subprocess.run(load, stdout=subprocess.PIPE, text=True, check=True).stdout
        end.set()
        watcher.join()
        server.send_signal(signal.SIGINT)  # `lab exec` became the server
        listener.join()
        server.wait()
    finally:
        if server.poll() is None:
            server.kill()
    result = json.loads(result)
    whole = [event for event in rotations if event["rotated"] == flags.clients]
    mean = lambda field: sum(event[field] for event in whole) / len(whole) if whole else None
    resident = resident or [[0, 0]]
    quarter = max(len(resident) // 4, 1)
    return {
        "clients": flags.clients,
        "rotate": rotate,
        "bind": flags.bind,
        "engine": flags.engine,
        "replies": replies,
        "sent": result["sent"],
        "lost": result["sent"] - result["complete"],
        "late_requests": result["late"],
        "p50_us": result["first"]["p50_us"],
        "p99_us": result["first"]["p99_us"],
        "max_us": result["first"]["max_us"],
        "rotations": len(whole),
        "rotation_seconds": mean("seconds"),
        "rotation_cpu_seconds": mean("cpu_seconds"),
        "most_cpu_seconds": max((event["cpu_seconds"] for event in whole), default=None),
        "late_steps": sum(event["late_ms"] > 0 for event in rotations),
        "most_live": max((event["live"] for event in rotations), default=ready["addresses"]),
        "resident_mib": max(most for _, most in resident) / 1024,
        "resident_first_mib": max(now for now, _ in resident[:quarter]) / 1024,
        "resident_last_mib": max(now for now, _ in resident[-quarter:]) / 1024,
        "kernel_mib": (ready["kernel_memory"] or 0) / 2**20,
        "bind_seconds": ready["bind_seconds"],
        "environment": {name: ready["environment"][name] for name in ("revision", "kernel", "cpu", "processors")},
    }


def main():
    flags = arguments()
    flags.sixhop = os.path.abspath(flags.sixhop)
    subprocess.run([flags.sixhop, "lab", "--name", LAB, "up"], check=True, stdout=subprocess.DEVNULL)
    results = []
    try:
        with tempfile.NamedTemporaryFile() as secret:  # mode 600
            secret.write(os.urandom(32))
            secret.flush()
            for replies in flags.replies:
                for rotate in [flags.rotate] if flags.only_rotation else [WEEK, flags.rotate]:
                    results.append(run(flags, secret.name, rotate, replies))
                    print(json.dumps(results[-1]), flush=True)
    finally:
        subprocess.run([flags.sixhop, "lab", "--name", LAB, "down"], check=False, stdout=subprocess.DEVNULL)
    print("\nreplies  step    lost  p50 us   p99 us   max us  rotations  cpu s   most  late  MiB own+kernel")
    for result in results:
        cpu = "     –      –" if result["rotation_cpu_seconds"] is None else (
            f"{result['rotation_cpu_seconds']:6.2f} {result['most_cpu_seconds']:6.2f}")
        step = "–" if result["rotate"] == WEEK else f"{result['rotate']} s"
        print(
            f"{result['replies']:7} {step:>5} {result['lost']:7} {result['p50_us']:7.1f} {result['p99_us']:8.1f} "
            f"{result['max_us']:8.0f} {result['rotations']:10} {cpu} {result['late_steps']:5}  "
            f"{result['resident_mib']:.0f}+{result['kernel_mib']:.0f}")
    bad = [r for r in results if r["lost"] or r["late_steps"] or r["most_live"] > 3 * flags.clients]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
