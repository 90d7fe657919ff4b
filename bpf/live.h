/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Which addresses are live. Checked second, exactly, at a cost that does not grow with their
 * number.
 *
 *   fixed addresses ───► live_addresses, a hash
 *   moving addresses ──► timed_addresses (timed.h)
 */
#pragma once

#include "maps.h"
#include "timed.h"

/* Whether addresses move. User space then does not know which are live now, so this program also
 * rejects requests from live addresses. */
const volatile bool moving = false;

/* Sized by user space before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct in6_addr);
	__type(value, __u32);
} live_addresses SEC(".maps");

/* Addresses to add to `live_addresses` or to remove. User space writes them through a mapping. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct staged);
} staged SEC(".maps");

static __always_inline bool is_live(const struct in6_addr *address)
{
	if (!moving)
		return bpf_map_lookup_elem(&live_addresses, address);
	return is_live_now(address);
}
