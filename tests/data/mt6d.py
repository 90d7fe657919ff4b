#!/usr/bin/env python3
"""Writes mt6d.txt: interface identifiers by their definition, as a reference for tests.

A line is: seed identifier (hex), key (hex, '-' if empty), time step, identifier (hex).
The identifier is the first 64 bits of SHA-256 over seed identifier (8 bytes), key and time step
(8 bytes); numbers are in network byte order.    python3 mt6d.py > mt6d.txt
"""
import hashlib

SEEDS = [0, 1, 0x0200_5EFF_FE00_5301, 2**64 - 1]
KEYS = [b"", b"a", b"correct horse battery staple", bytes(range(32)), bytes(200)]
STEPS = [0, 1, 140_000_000, 2**64 - 1]

for seed in SEEDS:
    for key in KEYS:
        for step in STEPS:
            text = seed.to_bytes(8, "big") + key + step.to_bytes(8, "big")
            identifier = hashlib.sha256(text).digest()[:8]
            print(f"{seed:016x} {key.hex() or '-'} {step} {identifier.hex()}")
