/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * The data shared between user space and the programs. src/xdp/program.rs is the other side.
 */
#pragma once

#include "headers.h"

/* Constants, set before the program is loaded, so that the verifier removes dead branches. */
/* In network byte order; 0, which is no valid port, steers no UDP. */
const volatile __be16 service_port = 0;
const volatile bool hidden = false;
/* Replies that the program itself sends to each request; 0 sends requests to the rings. */
const volatile __u16 replies = 0;
/* The interface that replies leave by, and the inode of its network namespace. */
const volatile __s32 interface = 0;
const volatile __u32 network = 0;

/* Prefixes. The first few are compared directly, which is cheaper than a trie lookup; the trie
 * holds the others. */
#define FEW 4

struct prefixes {
	__u64 count; /* of all prefixes */
	struct {
		__u64 network[2];
		__u64 mask[2];
	} few[FEW];
};

/* Bound prefixes, checked first: a packet for another prefix costs a comparison and no hash lookup.
 * User space writes this through a mapping. */
volatile struct prefixes bound = {};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* tries require it */
	__uint(max_entries, 1024);
	__type(key, struct prefix_key);
	__type(value, __u32);
} bound_prefixes SEC(".maps");

/* If hidden: the addresses under bound prefixes that the kernel answers for, such as the machine's
 * own. If the program answers: the addresses of the interface, which no request may come from. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct in6_addr);
	__type(value, __u32);
} kernel_addresses SEC(".maps");

/* Maps a queue number to its socket. Sized by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* One slot per reply, all for the same interface: a broadcast through the map sends all replies to
 * a request. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} ways_out SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REFUSALS);
	__type(key, __u32);
	__type(value, __u64);
} refusals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FRAMES);
	__type(key, __u32);
	__type(value, __u64);
} frames SEC(".maps");

/* By value: the headers are packed, so pointers into them are not allowed. */
static __always_inline bool is_under(const volatile struct prefixes *prefixes, void *trie,
				     struct in6_addr address)
{
	const __u64 count = prefixes->count;
	__u64 halves[2];

	__builtin_memcpy(halves, &address, sizeof(halves));
	for (__u32 number = 0; number < FEW; number++) {
		const volatile __u64 *network = prefixes->few[number].network;
		const volatile __u64 *mask = prefixes->few[number].mask;
		if (number >= count)
			return false;
		if (!(((halves[0] ^ network[0]) & mask[0]) | ((halves[1] ^ network[1]) & mask[1])))
			return true;
	}
	struct prefix_key key = { .length = 128, .address = address };
	return count > FEW && bpf_map_lookup_elem(trie, &key);
}

static __always_inline bool is_bound(struct in6_addr address)
{
	return is_under(&bound, &bound_prefixes, address);
}

static __always_inline int count(enum verdict verdict, int action)
{
	add(&verdicts, verdict, 1);
	return action;
}
