/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Requests with extension headers, fragments or a priority tag before the UDP header. No ring gets
 * them: the kernel parses them, and the socket behind answers them (src/engine/behind.rs).
 *
 *   VLAN tags of VLAN 0 ──► IPv6 ──► at most EXTENSIONS extension headers
 *      ├─ UDP, our port ───────────────────► live address ──► kernel
 *      └─ a fragment that is not the first ─► live address ──► kernel
 *
 * If hidden, nothing else under a bound prefix reaches the kernel this way, except packets for
 * addresses of the kernel.
 */
#pragma once

#include "extensions.h"
#include "live.h"
#include "sources.h"

/* Bound on offsets into a packet, for the verifier; all bits set, since it is a mask. */
#define FARTHEST 0x7ff

enum found {
	NOTHING_OURS,
	REQUEST, /* a datagram to our port, or the first fragment of one */
	FRAGMENT, /* a later fragment; only the first says of what */
	SOLICITATION, /* a solicitation, if the caller looks for them */
};

/* Classifies the packet whose IPv6 header starts at offset `at`. With `solicitations`, also finds
 * solicitations; the bits above the first 8 then hold the offset of the ICMPv6 header.
 *
 * The kernel hands a REQUEST or FRAGMENT to a socket, unless it is invalid. It may answer anything
 * else in another way, with an ICMPv6 error, by TCP or with an echo reply: an unknown header, a
 * misplaced one, a routing header with segments left, a first fragment without all headers. */
static __always_inline __u32 find_between(void *data, void *end, __u32 at, bool solicitations)
{
	struct ipv6hdr *ip = data + (at & 0x3f);

	if ((!service_port && !solicitations) || (void *)(ip + 1) > end || ip->version != 6)
		return NOTHING_OURS;
	__u8 next = ip->nexthdr;
	at = (at & 0x3f) + sizeof(*ip);
	for (__u32 number = 0; number <= EXTENSIONS; number++) {
		at &= FARTHEST;
		struct udphdr *udp = data + at;
		struct fragment *fragment = data + at;
		struct extension *extension = data + at;

		/* Each header is at least 8 bytes long. */
		if ((void *)(udp + 1) > end)
			return NOTHING_OURS;
		switch (next) {
		case IPPROTO_UDP:
			return service_port && udp->dest == service_port ? REQUEST : NOTHING_OURS;
		case IPPROTO_ICMPV6:
			if (solicitations &&
			    ((struct icmp6hdr *)udp)->icmp6_type == NEIGHBOUR_SOLICITATION)
				return SOLICITATION | at << 8;
			return NOTHING_OURS;
		case IPPROTO_FRAGMENT:
			if (fragment->offset & bpf_htons(0xfff8))
				return FRAGMENT;
			next = fragment->next;
			at += sizeof(*fragment);
			continue;
		case IPPROTO_HOPOPTS:
			if (number)
				return NOTHING_OURS;
			break;
		case IPPROTO_ROUTING:
			if (extension->segments_left)
				return NOTHING_OURS;
			break;
		case IPPROTO_DSTOPTS:
			break;
		default:
			return NOTHING_OURS;
		}
		next = extension->next;
		at += 8 * (extension->length + 1);
	}
	return NOTHING_OURS;
}

/* A global function, so that the verifier checks it only once. */
__noinline __u32 find(struct xdp_md *ctx, __u32 at)
{
	return find_between((void *)(long)ctx->data, (void *)(long)ctx->data_end, at, false);
}

/* Decides about a packet whose IPv6 header starts at offset `at`, within the packet. */
static __always_inline int behind(struct xdp_md *ctx, __u32 at)
{
	__u32 found = find(ctx, at);
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + at;

	if ((void *)(ip + 1) > end || (found == NOTHING_OURS && !hidden))
		return count(PASSED_OTHER, XDP_PASS);
	struct in6_addr address = ip->daddr;
	if (!is_bound(address))
		return count(PASSED_PREFIX, XDP_PASS);
	if (found != NOTHING_OURS && is_live(&address)) {
		struct in6_addr source = ip->saddr;
		/* The socket applies all rules. This one only makes disallowed sources cheap. A
		 * later fragment may belong to something else, which the kernel answers if it owns
		 * the address. */
		if (screened && (hidden || found == REQUEST) && !is_allowed(source))
			return refuse(SOURCE_NOT_ALLOWED);
		if (found == REQUEST && !is_within_limit(source))
			return refuse(SOURCE_OVER_LIMIT);
		if (found == REQUEST && moving && is_live(&source))
			return refuse(SOURCE_OWN);
		return count(PASSED_BEHIND, XDP_PASS);
	}
	if (!hidden)
		return count(PASSED_NOT_LIVE, XDP_PASS);
	if (bpf_map_lookup_elem(&kernel_addresses, &address))
		return count(PASSED_KERNEL, XDP_PASS);
	return count(DROPPED_HIDDEN, XDP_DROP);
}

/* Handles a frame with a VLAN tag. A tag of VLAN 0 carries only a priority: the kernel takes the
 * frame as if untagged, and so does this program. A frame of another VLAN belongs to the interface
 * of that VLAN, if there is one. */
static __always_inline int tagged(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 at = sizeof(struct ethhdr);

	for (__u32 number = 0; number < TAGS; number++) {
		struct tag *tag = data + at;
		if ((void *)(tag + 1) > end || tag->control & bpf_htons(0xfff))
			return count(PASSED_OTHER, XDP_PASS);
		at += sizeof(*tag);
		if (tag->protocol == bpf_htons(ETH_P_IPV6))
			return behind(ctx, at);
		if (tag->protocol != bpf_htons(ETH_P_8021Q) &&
		    tag->protocol != bpf_htons(ETH_P_8021AD))
			return count(PASSED_OTHER, XDP_PASS);
	}
	/* The kernel looks behind any number of tags. */
	return hidden ? count(DROPPED_HIDDEN, XDP_DROP) : count(PASSED_OTHER, XDP_PASS);
}
