/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Which moving addresses are live: memory that user space writes. src/address/timed.rs has the
 * layout and the same rules.
 */
#pragma once

#include "headers.h"

const volatile __u64 subnet = 0; /* upper half of moving addresses, in memory order */
const volatile __u32 bits = 4; /* log2 of the buckets in a part */

/* The current time step. User space writes it through a mapping. One store makes live all addresses
 * entered ahead for one step, and ends those of another. */
volatile __u64 current_step = 0;

#define PARTS 4
#define SLOTS 7
#define REACH 16

struct bucket {
	__u64 head; /* step << 8 | count */
	__u64 identifiers[SLOTS];
};

/* Sized by user space before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} timed_addresses SEC(".maps");

static __always_inline bool is_entered(__u64 step, __u64 identifier)
{
	const __u64 first = identifier * 0x9e3779b97f4a7c15 >> (64 - bits);

	for (__u32 further = 0; further < REACH; further++) {
		__u32 place = (step % PARTS << bits) + (first + further & (1 << bits) - 1);
		const struct bucket *bucket = bpf_map_lookup_elem(&timed_addresses, &place);
		if (!bucket || bucket->head >> 8 != step)
			return false;
		__u32 count = bucket->head & 0xff;
		for (__u32 slot = 0; slot < SLOTS; slot++) {
			if (slot >= count)
				return false;
			if (bucket->identifiers[slot] == identifier) {
				/* The bucket may have gone to another step while it was read. */
				barrier();
				return *(const volatile __u64 *)&bucket->head >> 8 == step;
			}
		}
	}
	return false;
}

/* A global function, so that the verifier checks it only once. The current step comes first, since
 * most requests use it. */
__noinline int is_timed(__u64 identifier)
{
	const __u64 now = current_step;

	return is_entered(now, identifier) || is_entered(now - 1, identifier) ||
	       is_entered(now + 1, identifier);
}

static __always_inline bool is_live_now(const struct in6_addr *address)
{
	__u64 halves[2];

	__builtin_memcpy(halves, address, sizeof(halves));
	return halves[0] == subnet && is_timed(halves[1]);
}
