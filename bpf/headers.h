/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What the programs share: the headers of the two kinds of packet that they look at, and what they
 * count. Built on the kernel's own user-space headers (linux-libc-dev), which are stable; no
 * vmlinux.h is needed.
 */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/icmpv6.h>
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

/* Neighbour Solicitation (RFC 4861 section 4.3) up to its options: 14 + 40 + 8 + 16 bytes, no
 * holes. */
struct solicitation {
	struct ethhdr ether;
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
	struct in6_addr target;
} __attribute__((packed));

#define NEIGHBOUR_SOLICITATION 135 /* ICMPv6 type, RFC 4861 section 4.3 */

/* Key of an LPM trie: the length in bits in the host's order, then the address (struct
 * bpf_lpm_trie_key_u8). */
struct prefix_key {
	__u32 length;
	struct in6_addr address;
};

/* Addresses that one call of change_live takes: enough to spread the cost of a system call, few
 * enough that what is looked up for all of them is still in the cache when they are changed. The
 * verifier walks the loop over them step by step. */
#define STAGED 1024

struct staged {
	struct in6_addr addresses[STAGED];
};

/* What change_live is called with. src/xdp/program.rs has the same. */
struct change {
	__u32 count;  /* of staged addresses */
	__u32 remove; /* whether they go */
	__u32 error;  /* why it stopped early, an error number; written by the program */
};

/* Index into the map `verdicts`. src/xdp/program.rs names them in the same order. */
enum verdict {
	REFLECTED, /* a request, answered by the program itself */
	REFUSED,   /* a request that is not answered, dropped by the program: `refusals` says why */
	STEERED,   /* a request, into the ring of the queue that it arrived on */
	/* A Neighbour Solicitation for a live address, into the ring as well; only where hidden. */
	SOLICITED,
	/* To the kernel: not UDP directly over IPv6 over Ethernet. */
	PASSED_OTHER,
	/* To the kernel: another port. */
	PASSED_PORT,
	/* To the kernel: our port, but under no bound prefix; where hidden, whatever port. */
	PASSED_PREFIX,
	/* To the kernel: our port, under a bound prefix, but no live address. */
	PASSED_NOT_LIVE,
	/* To the kernel, for the socket behind: a request behind extension headers, or part of
	 * one. */
	PASSED_BEHIND,
	/* To the kernel: under a bound prefix, but to an address of the kernel's own; only where
	 * hidden. */
	PASSED_KERNEL,
	/* Under a bound prefix, and nothing that a live address answers; only where hidden. */
	DROPPED_HIDDEN,
	/* Got around the XDP program, and met the tc program behind it; only where hidden. */
	DROPPED_BACKSTOP,
	/* Ours, but no socket sits on this queue: to the kernel, or dropped where hidden. */
	NO_RING,
	VERDICTS,
};

/* Why a request is not answered: index into the map `refusals`, in the order of Refusal in
 * src/wire/request.rs. The program finds those that it names. */
enum refusal {
	NOT_UDP,
	BAD_LENGTH,
	NO_CHECKSUM,
	BAD_CHECKSUM,
	OTHER_PORT,
	SOURCE_MULTICAST,
	SOURCE_UNSPECIFIED,
	SOURCE_LOOPBACK,
	SOURCE_OWN,
	SOURCE_SERVICE_PORT,
	SOURCE_PORT_ZERO,
	SOURCE_NOT_ALLOWED = 15,
	SOURCE_OVER_LIMIT,
	DESTINATION_MULTICAST,
	SOURCE_MAPPED,
	UNFINISHED_CHECKSUM,
	REFUSALS,
};

/* Index into the map `frames`. */
enum frames {
	SENT,   /* the driver took it */
	UNSENT, /* it did not */
	FRAMES,
};
