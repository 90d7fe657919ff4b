/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What the programs share: the headers of the one kind of packet that they look at, and the verdicts that they count.
 * Built on the kernel's own user-space headers (linux-libc-dev), which are stable; no vmlinux.h is needed.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Ethernet, IPv6 without extension headers, UDP: 14 + 40 + 8 bytes, no holes. */
struct headers {
	struct ethhdr ether;
	struct ipv6hdr ip;
	struct udphdr udp;
} __attribute__((packed));

/* Key of an LPM trie: the length in bits in the host's order, then the address (struct bpf_lpm_trie_key_u8). */
struct prefix_key {
	__u32 length;
	struct in6_addr address;
};

/* Index into the map `verdicts`. src/xdp/program.rs names them in the same order. */
enum verdict {
	STEERED,         /* into the ring of the queue that it arrived on */
	PASSED_OTHER,    /* to the kernel: not UDP directly over IPv6 over Ethernet */
	PASSED_PORT,     /* to the kernel: another port */
	PASSED_PREFIX,   /* to the kernel: our port, but under no bound prefix */
	PASSED_NOT_LIVE, /* to the kernel: our port, under a bound prefix, but no live address */
	PASSED_NO_RING,  /* to the kernel: ours, but no socket sits on this queue */
	VERDICTS,
};
