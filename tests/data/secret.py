#!/usr/bin/env python3
"""Writes secret.txt: the values that clients derive from a secret, as a reference for tests.

A line is: secret (hex), number of the client, seed identifier (hex), key (hex), tunnel key (hex).
HKDF-SHA-256 (RFC 5869), extract and expand.    python3 secret.py > secret.txt
"""
import hashlib
import hmac

SALT = b"sixhop mt6d 1"
SECRETS = [bytes(16), bytes(range(32)), b"correct horse battery staple\n", bytes([0xFF]) * 100]
CLIENTS = [0, 1, 255, 999_999, 2**32 - 1]


def mac(key, text):
    return hmac.new(key, text, hashlib.sha256).digest()


for secret in SECRETS:
    extracted = mac(SALT, secret)
    for client in CLIENTS:
        info = b"client" + client.to_bytes(8, "big")
        first = mac(extracted, info + bytes([1]))
        second = mac(extracted, first + info + bytes([2]))
        text = (first + second)[:40]
        tunnel = mac(extracted, b"tunnel" + client.to_bytes(8, "big") + bytes([1]))
        print(secret.hex(), client, text[:8].hex(), text[8:].hex(), tunnel.hex())
