/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Which addresses are live: decided second, exactly, at a cost that does not grow with their
 * number.
 *
 *   those that stay ──► live_addresses, a hash
 *   those that move ──► timed_addresses, memory that user space writes itself:
 *                       src/address/timed.rs says how, and has the same rules
 */
#pragma once

#include "maps.h"

/* Whether they move. Then user space does not know what is live at the moment: who may not ask is
 * decided here. */
const volatile bool moving = false;
const volatile __u64 subnet = 0; /* the first half of addresses that move, as it lies in memory */
const volatile __u32 bits = 4; /* the binary logarithm of the buckets of a part */

/* The time step that it is, written by user space, which has this mapped. One store has all
 * addresses of a step live that were entered ahead of it, and those of another cease to be. */
volatile __u64 current_step = 0;

/* Sized by user space before it is loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct in6_addr);
	__type(value, __u32);
} live_addresses SEC(".maps");

/* Addresses on their way into `live_addresses` or out of it, written by user space, which has this
 * mapped. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct staged);
} staged SEC(".maps");

#define PARTS 4
#define SLOTS 7
#define REACH 16

struct bucket {
	__u64 head; /* step << 8 | how many */
	__u64 identifiers[SLOTS];
};

/* Sized by user space before it is loaded. */
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

/* A global function: the verifier looks at it once. The step that it is comes first, which most ask
 * for. */
__noinline int is_timed(__u64 identifier)
{
	const __u64 now = current_step;

	return is_entered(now, identifier) || is_entered(now - 1, identifier) ||
	       is_entered(now + 1, identifier);
}

static __always_inline bool is_live(const struct in6_addr *address)
{
	__u64 halves[2];

	if (!moving)
		return bpf_map_lookup_elem(&live_addresses, address);
	__builtin_memcpy(halves, address, sizeof(halves));
	return halves[0] == subnet && is_timed(halves[1]);
}
