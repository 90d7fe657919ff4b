/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Which sources get answers: the rules of Handler::screen (src/policy.rs) in the same order,
 * applied before a request costs more than parsing its headers. Then the rate limit per source.
 *
 *   service port, port 0 ──► multicast, ::, ::1, mapped ──► allowed_sources ──► (live?) ──► budgets
 *
 * A disabled rule is a constant, so the verifier removes its code.
 */
#pragma once

#include "maps.h"

/* Whether to check sources. A server does; a load generator accepts replies from any source. */
const volatile bool screened = false;
const volatile bool allow_list = false; /* whether to answer only `allowed_sources` */
/* Mean time that a source must leave between requests, in nanoseconds; 0 for no limit. `burst` is
 * how far it may run ahead of that, in nanoseconds, at least `interval`. */
const volatile __u64 interval = 0;
const volatile __u64 burst = 0;

/* The interface's Ethernet address in memory order, then two zero bytes. User space writes it
 * through a mapping, since it may change; storing one word is atomic. */
volatile __u64 station = 0;

/* Prefixes of allowed sources. */
volatile struct prefixes allowed = {};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix_key);
	__type(value, __u32);
} allowed_sources SEC(".maps");

/* A source's token bucket, stored as one number: when it will be full again, in nanoseconds of the
 * monotonic clock. Sized by user space; 1 without a limit. The kernel evicts the least recently
 * used entries, which have the fullest buckets. */
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

static __always_inline bool is_allowed(struct in6_addr source)
{
	return !allow_list || is_under(&allowed, &allowed_sources, source);
}

/* Whether a frame has this machine's unicast address. Compares its first 8 bytes: the destination,
 * and two bytes of the source, which are masked out. */
static __always_inline bool is_for_us(const __u64 *frame)
{
	return !((*frame ^ station) & bpf_cpu_to_be64(0xffffffffffff0000));
}

/* Handler::screen: the rule that the source breaks, or REFUSALS if none. */
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

/* Takes a token for one request from the source's bucket. The bucket holds `burst`, a request takes
 * `interval`, and it refills over time. Two processors that serve one source at the same moment may
 * take the same token; a card keeps a flow on one processor. */
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
