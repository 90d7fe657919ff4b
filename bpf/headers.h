/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Shared by the programs: the headers of the two kinds of packet that they parse, and the counters.
 * Uses the kernel's stable user-space headers (linux-libc-dev), so needs no vmlinux.h.
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

/* Key of an LPM trie (struct bpf_lpm_trie_key_u8): length in bits, in host byte order, then the
 * address. */
struct prefix_key {
	__u32 length;
	struct in6_addr address;
};

/* Most addresses per call of change_live: enough to amortise the system call, few enough that all
 * the entries looked up are still cached when they change. The verifier walks the loop over them
 * step by step. */
#define STAGED 1024

struct staged {
	struct in6_addr addresses[STAGED];
};

/* Context of change_live. src/xdp/program.rs has the same. */
struct change {
	__u32 count;  /* number of staged addresses */
	__u32 remove; /* whether to remove them */
	__u32 error;  /* the errno that stopped it early; written by the program */
};

/* Index into the map `verdicts`. src/xdp/program.rs names them in the same order. */
enum verdict {
	REFLECTED, /* a request that the program itself answered */
	REFUSED,   /* a request that the program dropped; `refusals` has the reason */
	STEERED,   /* a request, to the ring of its queue */
	/* A solicitation for a live address, to the ring of its queue; only if hidden. */
	SOLICITED,
	/* To the kernel: not UDP directly over IPv6 over Ethernet. */
	PASSED_OTHER,
	/* To the kernel: another port. */
	PASSED_PORT,
	/* To the kernel: our port, but no bound prefix; if hidden, any port. */
	PASSED_PREFIX,
	/* To the kernel: our port and a bound prefix, but not a live address. */
	PASSED_NOT_LIVE,
	/* To the kernel, for the socket behind: a request behind extension headers, a fragment. */
	PASSED_BEHIND,
	/* To the kernel: a bound prefix, but an address of the kernel; only if hidden. */
	PASSED_KERNEL,
	/* Dropped: a bound prefix, but not for a live address; only if hidden. */
	DROPPED_HIDDEN,
	/* Dropped: it got around the XDP program to the tc program behind it; only if hidden. */
	DROPPED_BACKSTOP,
	/* For the service, but its queue has no socket: to the kernel, or dropped if hidden. */
	NO_RING,
	VERDICTS,
};

/* Index into the map `refusals`, in the order of Refusal in src/wire/request.rs. Only those that
 * the program uses have names. */
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
	SENT,   /* the driver accepted it */
	UNSENT, /* the driver dropped it */
	FRAMES,
};

/* By value: the headers are packed, so pointers into them are not allowed. */
static __always_inline bool equal(struct in6_addr a, struct in6_addr b)
{
	return a.s6_addr32[0] == b.s6_addr32[0] && a.s6_addr32[1] == b.s6_addr32[1] &&
	       a.s6_addr32[2] == b.s6_addr32[2] && a.s6_addr32[3] == b.s6_addr32[3];
}

static __always_inline void add(void *counters, __u32 index, __u64 number)
{
	__u64 *counter = bpf_map_lookup_elem(counters, &index);
	if (counter)
		*counter += number; /* per CPU, and a program does not preempt itself */
}
