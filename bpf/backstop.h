/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * The backstop, if hidden: a tc program on the same interface. It sees what the XDP program passes,
 * and whatever gets around it. A veth that gets more queues, for example, has no XDP program on
 * them.
 *
 *   NIC queue ──► steer ──► VLAN tag off ──► backstop
 *        └─ around it ──────────────────────────┘
 *
 *   backstop
 *      ├─ request or fragment for a live address ──► marked ──► kernel
 *      ├─ to one of the kernel's own addresses ───────────────► kernel
 *      ├─ else to or for an address under a bound prefix ─────► dropped, counted
 *      └─ everything else, untouched ─────────────────────────► kernel
 *
 * The kernel accepts packets under a bound prefix only with the mark (netlink::Delivery). Without
 * this program no packet has it: the kernel is as silent as about any address that it does not own.
 */
#pragma once

#include "behind.h"
#include "tc.h"

/* src/net/netlink/route.rs has the same. */
#define MARK 0x66680000

/* Makes the first `length` bytes, or the whole packet if shorter, readable by the program. */
static __always_inline void reach(struct __sk_buff *skb, __u32 length)
{
	/* On failure, the bounds checks that follow fail. */
	bpf_skb_pull_data(skb, skb->len < length ? skb->len : length);
}

/* A global function, so that the verifier checks it only once. */
__noinline __u32 find_in_skb(struct __sk_buff *skb, __u32 at)
{
	return find_between((void *)(long)skb->data, (void *)(long)skb->data_end, at, true);
}

static __always_inline bool is_hidden(const struct in6_addr *address)
{
	return is_bound(*address) && !bpf_map_lookup_elem(&kernel_addresses, address);
}

/* Decides about a packet whose IPv6 header starts at offset `at`. */
static __always_inline int decide(struct __sk_buff *skb, __u32 at)
{
	void *data = (void *)(long)skb->data;
	struct ipv6hdr *ip = data + at;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return HAND_ON;
	struct in6_addr source = ip->saddr;
	struct in6_addr address = ip->daddr;
	bool hidden_address = is_hidden(&address);
	/* TCP, UDP and other protocols carry no target address. */
	if (!hidden_address && ip->nexthdr != IPPROTO_ICMPV6 && ip->nexthdr != IPPROTO_HOPOPTS &&
	    ip->nexthdr != IPPROTO_ROUTING && ip->nexthdr != IPPROTO_FRAGMENT &&
	    ip->nexthdr != IPPROTO_DSTOPTS)
		return HAND_ON;

	reach(skb, FARTHEST + sizeof(struct udphdr));
	__u32 found = find_in_skb(skb, at);
	if ((found & 0xff) == SOLICITATION) {
		struct in6_addr target;
		__u32 place = (found >> 8) + sizeof(struct icmp6hdr);
		/* The kernel would answer for addresses that it proxies (ip neigh add proxy). */
		if (!bpf_skb_load_bytes(skb, place, &target, sizeof(target)) && is_hidden(&target))
			return count(DROPPED_BACKSTOP, DROP);
	}
	if (!hidden_address)
		return HAND_ON;
	if (found == REQUEST && skb->pkt_type == OTHER_HOST)
		return HAND_ON; /* as the XDP program does; the kernel drops it */
	if ((found == REQUEST || found == FRAGMENT) && is_live(&address)) {
		/* The rules of `behind`, except the limit, which has counted the packet already. */
		if ((!screened || is_allowed(source)) &&
		    !(found == REQUEST && moving && is_live(&source))) {
			set_mark(skb, MARK);
			return HAND_ON;
		}
	}
	return count(DROPPED_BACKSTOP, DROP);
}

SEC("tc")
int backstop(struct __sk_buff *skb)
{
	__u32 at = sizeof(struct ethhdr);

	/* The kernel has stripped the first tag. */
	if (skb->vlan_present && skb->vlan_tci & 0xfff)
		return HAND_ON;
	reach(skb, at + TAGS * sizeof(struct tag) + sizeof(struct ipv6hdr));
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *ether = data;
	if ((void *)(ether + 1) > end)
		return HAND_ON;
	__be16 protocol = ether->h_proto;
	for (__u32 number = 0; number <= TAGS; number++) {
		if (protocol == bpf_htons(ETH_P_IPV6))
			return decide(skb, at);
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			return HAND_ON;
		struct tag *tag = data + at;
		if ((void *)(tag + 1) > end || tag->control & bpf_htons(0xfff))
			return HAND_ON;
		protocol = tag->protocol;
		at += sizeof(*tag);
	}
	return count(DROPPED_BACKSTOP, DROP);
}
