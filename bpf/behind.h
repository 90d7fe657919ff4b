/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Requests that no ring gets, because more stands before the UDP header than an IPv6 header:
 * extension headers, fragments, a priority tag. The kernel takes them apart, and a socket behind
 * this program answers them (src/engine/behind.rs).
 *
 *   VLAN tags of VLAN 0 ──► IPv6 ──► at most EXTENSIONS extension headers
 *      ├─ UDP, our port ───────────────────► live address ──► kernel
 *      └─ a fragment that is not the first ─► live address ──► kernel
 *
 * Where hidden, nothing else under a bound prefix gets there this way, but to the kernel's own
 * addresses.
 */
#pragma once

#include "live.h"
#include "sources.h"

/* More than anybody has a reason for; RFC 8200 section 4.1 names seven, each once, of which two are
 * IPsec's. */
#define EXTENSIONS 6

/* VLAN tags that are looked behind. */
#define TAGS 3

/* Offsets into a packet have to end somewhere, for the verifier; all bits set. */
#define FARTHEST 0x7ff

enum found {
	NOTHING_OURS,
	REQUEST, /* a datagram to our port, or the first fragment of one */
	FRAGMENT, /* a later one: of what, its first says */
	SOLICITATION, /* a Neighbour Solicitation, where they are looked for */
};

struct tag {
	__be16 control; /* of which 12 bits are the VLAN's number */
	__be16 protocol;
} __attribute__((packed));

/* The first bytes of hop-by-hop options, routing header and destination options (RFC 8200 section
 * 4). */
struct extension {
	__u8 next;
	__u8 length; /* in 8 bytes, without the first 8 */
	__u8 type;
	__u8 segments_left; /* of a routing header */
} __attribute__((packed));

struct fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* 13 bits, then two reserved ones, and whether more follow */
	__be32 identification;
} __attribute__((packed));

/* What the packet is whose IPv6 header starts `at` so many bytes. Where `solicitations` are looked
 * for, the bits above the first 8 say how many bytes the ICMPv6 header of one is behind `data`.
 *
 * What it calls ours the kernel hands to a socket, unless it finds fault with it. Anything else may
 * be answered otherwise, with an ICMPv6 error, by TCP or a ping's echo: a header that is not known
 * here, one where it must not be, a list of routers that is not at its end, a first fragment
 * without all headers. */
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

		/* All are 8 bytes, or more. */
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

/* A global function: the verifier looks at it once. */
__noinline __u32 find(struct xdp_md *ctx, __u32 at)
{
	return find_between((void *)(long)ctx->data, (void *)(long)ctx->data_end, at, false);
}

/* Decides over a packet whose IPv6 header starts `at` so many bytes and is there. */
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
		/* The socket decides by all rules: what matters here is that those who may not ask
		 * cost nothing. A later fragment may be of something else, which the kernel answers
		 * where the address is its own. */
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

/* A frame with a VLAN tag. That of VLAN 0 only says a priority: the kernel takes what is behind it
 * for its own, as if it were not there, and so do we. Of another VLAN it is for another interface,
 * if there is one. */
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
	/* The kernel looks behind all of them. */
	return hidden ? count(DROPPED_HIDDEN, XDP_DROP) : count(PASSED_OTHER, XDP_PASS);
}
