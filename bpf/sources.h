/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Who is answered: the rules of Handler::screen (src/policy.rs) in the same order, decided
 * before a request costs more than its headers, and how often one source may ask.
 *
 *   service port, port 0 ──► multicast, ::, ::1, mapped ──► allowed_sources ──► (live?) ──► budgets
 *
 * What is off is a constant, which the verifier takes out.
 */
#pragma once

#include "maps.h"

/* Whether sources are looked at at all: by a server. A load generator takes its replies from
 * whoever they are. */
const volatile bool screened = false;
const volatile bool allow_list = false; /* whether only `allowed_sources` may ask */
/* Time that a source has to leave from one request to the next, on the average, in nanoseconds; 0
 * for no limit. And how far it may be ahead of that: at least as much. */
const volatile __u64 interval = 0;
const volatile __u64 burst = 0;

/* The interface's Ethernet address, as it lies in memory, and two zeros. Written by user space,
 * which has this mapped: the address may change, and a store of one word is whole. */
volatile __u64 station = 0;

/* Prefixes of sources that may ask. */
volatile struct prefixes allowed = {};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix_key);
	__type(value, __u32);
} allowed_sources SEC(".maps");

/* A source's bucket of tokens, by the one number that it takes: when it will be full again, in
 * nanoseconds of the monotonic clock. Sized by user space, to 1 where there is no limit. The kernel
 * forgets those that were not used for the longest time, which have the fullest buckets. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct in6_addr);
	__type(value, __u64);
} budgets SEC(".maps");

static __always_inline int refuse(enum refusal refusal)
{
	add(&refusals, refusal, 1);
	return count(REFUSED, XDP_DROP);
}

/* By value: the headers are packed, and no pointer may be taken into them. */
static __always_inline bool equal(struct in6_addr a, struct in6_addr b)
{
	return a.s6_addr32[0] == b.s6_addr32[0] && a.s6_addr32[1] == b.s6_addr32[1] &&
	       a.s6_addr32[2] == b.s6_addr32[2] && a.s6_addr32[3] == b.s6_addr32[3];
}

static __always_inline bool is_allowed(struct in6_addr source)
{
	return !allow_list || is_under(&allowed, &allowed_sources, source);
}

/* Whether a frame is for this machine alone, by its first 8 bytes: the destination, and two of the
 * source. */
static __always_inline bool is_for_us(const __u64 *frame)
{
	return !((*frame ^ station) & bpf_cpu_to_be64(0xffffffffffff0000));
}

/* Handler::screen: why requests from that source are not answered, REFUSALS where they are. */
static __always_inline enum refusal screen(struct in6_addr source, __be16 port)
{
	if (!screened)
		return REFUSALS;
	if (port == service_port)
		return SOURCE_SERVICE_PORT;
	if (!port)
		return SOURCE_PORT_ZERO;
	if (source.s6_addr[0] == 0xff)
		return SOURCE_MULTICAST;
	/* `::` and `::1` differ in the last bit. */
	if (!source.s6_addr32[0] && !source.s6_addr32[1] && !source.s6_addr32[2]) {
		if (!source.s6_addr32[3])
			return SOURCE_UNSPECIFIED;
		if (source.s6_addr32[3] == bpf_htonl(1))
			return SOURCE_LOOPBACK;
	}
	/* ::ffff:0:0/96 */
	if (!source.s6_addr32[0] && !source.s6_addr32[1] &&
	    source.s6_addr32[2] == bpf_htonl(0xffff))
		return SOURCE_MAPPED;
	if (!is_allowed(source))
		return SOURCE_NOT_ALLOWED;
	return REFUSALS;
}

/* Whether the source may ask once more: a bucket that holds `burst`, of which a request takes
 * `interval`, and which fills as time goes by. Two processors that serve one source at the same
 * moment may both take the same token; a card keeps a flow on one. */
static __always_inline bool is_within_limit(struct in6_addr source)
{
	if (!interval)
		return true;
	__u64 now = bpf_ktime_get_ns();
	__u64 *full = bpf_map_lookup_elem(&budgets, &source);
	__u64 next = (full && *full > now ? *full : now) + interval;
	if (next > now + burst)
		return false;
	if (full)
		*full = next;
	else
		bpf_map_update_elem(&budgets, &source, &next, BPF_ANY);
	return true;
}
