/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Shared by the tc programs: their actions, and the mark by which the kernel takes a packet for an
 * address that it does not own.
 */
#pragma once

#include "headers.h"

/* Actions of a tc program: continue with the next one, and drop. linux/bpf.h has them as an enum
 * from 6.6 on. */
#define HAND_ON -1
#define DROP 2

/* The part of a packet's mark that is ours. src/net/netlink/route.rs has the same. */
#define MARK_MASK 0xffff0000

/* Packet type: for another station (linux/if_packet.h). */
#define OTHER_HOST 3

static __always_inline void set_mark(struct __sk_buff *skb, __u32 value)
{
	__u32 mark = (skb->mark & ~MARK_MASK) | value;

	/* Without this the compiler writes only the half that changes, which the verifier rejects
	 * as a mark. */
	barrier_var(mark);
	skb->mark = mark;
}
