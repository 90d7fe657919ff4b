/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Answers a Neighbour Solicitation (RFC 4861) in a tc program, by the rules of src/wire/ndp.rs and
 * with the same bytes: tests/gate.rs compares the two.
 */
#pragma once

#include "gate.h"

#define NEIGHBOUR_ADVERTISEMENT 136
#define SOLICITED_FLAG 0x40
#define OVERRIDE_FLAG 0x20
#define SOURCE_LINK_ADDRESS 1
#define TARGET_LINK_ADDRESS 2
/* A router decrements the hop limit, so 255 proves that the packet comes from this link. */
#define ON_LINK 255

/* Options and their parts come in units of 8 bytes. More than this many are rejected, where
 * src/wire/ndp.rs takes any number: neighbours send one or two. */
#define UNITS 16

/* A solicitation or advertisement without its Ethernet header and options. */
struct discovery {
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
	struct in6_addr target;
};

/* An advertisement, aligned so that its words are. */
struct advertisement {
	__u16 padding;
	struct ethhdr ether;
	struct discovery is;
	__u8 option[8];
} __attribute__((packed, aligned(4)));

#define ADVERTISEMENT (sizeof(struct advertisement) - sizeof(__u16))

static __always_inline bool is_any(const struct in6_addr *address)
{
	return !address->s6_addr32[0] && !address->s6_addr32[1] && !address->s6_addr32[2] &&
	       !address->s6_addr32[3];
}

static __always_inline bool is_loopback(const struct in6_addr *address)
{
	return !address->s6_addr32[0] && !address->s6_addr32[1] && !address->s6_addr32[2] &&
	       address->s6_addr32[3] == bpf_htonl(1);
}

/* Whether `address` is the solicited-node group of `target` (RFC 4291 section 2.7.1). */
static __always_inline bool is_group_of(const struct in6_addr *address,
					const struct in6_addr *target)
{
	return address->s6_addr32[0] == bpf_htonl(0xff020000) && !address->s6_addr32[1] &&
	       address->s6_addr32[2] == bpf_htonl(1) &&
	       address->s6_addr32[3] == (target->s6_addr32[3] | bpf_htonl(0xff000000));
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The one's-complement sum of a message up to its options, and of its pseudo-header. */
static __always_inline __s64 sum_up(struct discovery *is, __u32 length)
{
	__s64 sum = bpf_htonl(length) + bpf_htonl(IPPROTO_ICMPV6);

	return bpf_csum_diff(0, 0, (__be32 *)&is->ip.saddr,
			     sizeof(*is) - offsetof(struct discovery, ip.saddr), sum);
}

/* Reads the options behind the message at `at`, adds them to `sum`, and finds the link-layer
 * address of the sender. False if RFC 4861 rejects them, or there are too many. */
static __always_inline bool read_options(struct __sk_buff *skb, __u32 at, __u32 length, __s64 *sum,
					 __u8 *from, bool *named)
{
	__u32 left = 0; /* units of the option that is being read */

	if (length % 8 || length / 8 > UNITS)
		return false;
	for (__u32 unit = 0; unit < UNITS && unit < length / 8; unit++) {
		__u8 option[8] __attribute__((aligned(8)));
		if (bpf_skb_load_bytes(skb, at + 8 * unit, option, sizeof(option)))
			return false;
		*sum = bpf_csum_diff(0, 0, (__be32 *)option, sizeof(option), *sum);
		if (left) {
			left--;
			continue;
		}
		if (!option[1])
			return false;
		left = option[1] - 1;
		if (option[0] == SOURCE_LINK_ADDRESS) {
			if (left)
				return false;
			if (!*named)
				__builtin_memcpy(from, option + 2, ETH_ALEN);
			*named = true;
		}
	}
	return !left && !(*named && from[0] & 1);
}

/* Whether the headers of a solicitation are as they must be. `named` says whether it has the
 * option for the sender's link-layer address. */
static __always_inline bool is_valid(const struct discovery *is, bool named)
{
	const struct in6_addr *source = &is->ip.saddr;
	bool to_group = is_group_of(&is->ip.daddr, &is->target);

	if (is->ip.hop_limit != ON_LINK || is->icmp.icmp6_code ||
	    source->s6_addr[0] == 0xff || is_loopback(source))
		return false;
	/* Duplicate Address Detection goes to the group, and the sender has no address to give. */
	if (is_any(source))
		return to_group && !named;
	return to_group || equal(is->ip.daddr, is->target);
}

static __always_inline void write(struct advertisement *answer, const struct discovery *is,
				  const __u8 *to)
{
	const __u64 ours = station;
	struct in6_addr destination = is->ip.saddr;
	__u32 flags = SOLICITED_FLAG | OVERRIDE_FLAG;
	struct discovery body = {};

	__builtin_memcpy(answer->ether.h_dest, to, ETH_ALEN);
	if (is_any(&is->ip.saddr)) {
		/* The sender has no address yet, so the answer goes to all nodes. */
		const __u8 all_nodes[ETH_ALEN] = { 0x33, 0x33, 0, 0, 0, 1 };
		__builtin_memcpy(answer->ether.h_dest, all_nodes, ETH_ALEN);
		destination.s6_addr32[0] = bpf_htonl(0xff020000);
		destination.s6_addr32[3] = bpf_htonl(1);
		flags = OVERRIDE_FLAG;
	}
	__builtin_memcpy(answer->ether.h_source, &ours, ETH_ALEN);
	answer->ether.h_proto = bpf_htons(ETH_P_IPV6);
	answer->option[0] = TARGET_LINK_ADDRESS;
	answer->option[1] = 1;
	__builtin_memcpy(answer->option + 2, &ours, ETH_ALEN);

	const __u32 length = sizeof(body) - sizeof(body.ip) + sizeof(answer->option);
	body.ip.version = 6;
	body.ip.payload_len = bpf_htons(length);
	body.ip.nexthdr = IPPROTO_ICMPV6;
	body.ip.hop_limit = ON_LINK;
	body.ip.saddr = is->target;
	body.ip.daddr = destination;
	body.icmp.icmp6_type = NEIGHBOUR_ADVERTISEMENT;
	body.icmp.icmp6_dataun.un_data32[0] = bpf_htonl(flags << 24);
	body.target = is->target;
	__u8 option[8] __attribute__((aligned(8)));
	__builtin_memcpy(option, answer->option, sizeof(option));
	__s64 sum = bpf_csum_diff(0, 0, (__be32 *)option, sizeof(option), sum_up(&body, length));
	body.icmp.icmp6_cksum = ~fold(sum);
	__builtin_memcpy(&answer->is, &body, sizeof(body));
}

/* Answers the solicitation whose IPv6 header is at `at`, for a live target, directly over it. */
static __always_inline int advertise(struct __sk_buff *skb, __u32 at)
{
	struct discovery is;
	struct advertisement answer = {};
	__u8 from[ETH_ALEN];
	bool named = false;

	if (at != sizeof(struct ethhdr) || bpf_skb_load_bytes(skb, at, &is, sizeof(is)) ||
	    bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_source), from, sizeof(from)))
		return drop(BAD_SOLICITATION);
	__u32 length = bpf_ntohs(is.ip.payload_len);
	__u32 least = sizeof(is) - sizeof(is.ip);
	if (length < least)
		return drop(BAD_SOLICITATION);
	__s64 sum = sum_up(&is, length);
	if (!read_options(skb, at + sizeof(is), length - least, &sum, from, &named) ||
	    fold(sum) != 0xffff || !is_valid(&is, named))
		return drop(BAD_SOLICITATION);
	write(&answer, &is, from);
	if (bpf_skb_change_tail(skb, ADVERTISEMENT, 0) ||
	    bpf_skb_store_bytes(skb, 0, &answer.ether, ADVERTISEMENT, BPF_F_RECOMPUTE_CSUM))
		return drop(BAD_SOLICITATION);
	return count(ADVERTISED, bpf_redirect(skb->ifindex, 0));
}
