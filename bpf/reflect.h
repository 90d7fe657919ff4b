/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * Answers requests in the program itself: the rules of Handler::screen and then of Handler::answer
 * (src/policy.rs) in the same order, and the same bytes in the reply. tests/program.rs compares the
 * two.
 *
 *   screen (sources.h) ──► validate ──► decide ──► rewrite
 *      ──► DEVMAP, whose slots all name the interface ──► one copy for each slot
 */
#pragma once

#include <bpf/bpf_tracing.h>

#include "live.h"
#include "sources.h"

/* Longest datagram that is answered, in bytes; longer than an Ethernet jumbo frame. All bits set,
 * since it is a mask: the verifier walks the summing loop step by step and needs a bound on
 * offsets. A driver delivers a page at most anyway. */
#define LONGEST 0x3fff

/* Bytes per step of the sum. */
#define BLOCK 16

/* The one's-complement sum of source, destination and the `length` bytes of the datagram, which are
 * contiguous: everything that the checksum covers except length and protocol. Returns it in memory
 * byte order, or 0, which no valid address sums to, if the frame is too short.
 *
 * A global function, so that the verifier checks it once, not again for each length. */
__noinline __u32 sum(struct xdp_md *ctx, __u32 length)
{
	void *end = (void *)(long)ctx->data_end;
	void *start = (void *)(long)ctx->data + offsetof(struct headers, ip.saddr);
	__u64 sum = 0;

	/* The caller knows that this clears no bit; the verifier does not. */
	length = (length & LONGEST) + 2 * sizeof(struct in6_addr);
	/* The bytes after the last whole block. */
	void *at = start + length / BLOCK * BLOCK;
	for (__u32 size = BLOCK / 2; size >= sizeof(__u16); size /= 2) {
		if (!(length & size))
			continue;
		if (at + size > end)
			return 0;
		for (__u32 word = 0; word < size / sizeof(__u16); word++)
			sum += ((__u16 *)at)[word];
		at += size;
	}
	if (length & 1) {
		if (at + 1 > end)
			return 0;
		sum += bpf_htons(*(__u8 *)at << 8); /* padded with a zero */
	}
	const __u32 blocks = (LONGEST + 2 * sizeof(struct in6_addr)) / BLOCK;
	for (__u32 block = 0; block < blocks && block < length / BLOCK; block++) {
		__u32 *words = start + block * BLOCK;
		if ((void *)(words + 4) > end)
			return 0;
		sum += (__u64)words[0] + words[1] + words[2] + words[3];
	}
	/* Below 2^44, so 4 steps fold in all carries. */
	for (__u32 fold = 0; fold < 4; fold++)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Answers a packet for a live address and our port. Its UDP header is within the packet. */
static __always_inline int reflect(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct headers *h = data;
	const __u32 ip_payload = offsetof(struct headers, udp);

	if (data + sizeof(*h) > end)
		return refuse(BAD_LENGTH);

	/* wire::validate */
	if (h->ip.version != 6)
		return refuse(NOT_UDP);
	__u32 frame = ctx->data_end - ctx->data;
	__u32 packet = bpf_ntohs(h->ip.payload_len);
	__u32 datagram = bpf_ntohs(h->udp.len);
	if (ip_payload + packet > frame || datagram > packet || datagram < sizeof(h->udp) ||
	    datagram > LONGEST)
		return refuse(BAD_LENGTH);
	if (!h->udp.check)
		return refuse(NO_CHECKSUM);
	/* The other two words of the pseudo-header (RFC 8200 section 8.1). A correct sum has all
	 * bits set. */
	__u32 all = sum(ctx, datagram) + h->udp.len + bpf_htons(IPPROTO_UDP);
	all = (all & 0xffff) + (all >> 16);
	if (((all & 0xffff) + (all >> 16)) != 0xffff) {
		/* Only the pseudo-header's sum: no card finished what the sender's kernel left to
		 * it. */
		all = sum(ctx, 0) + h->udp.len + bpf_htons(IPPROTO_UDP);
		all = (all & 0xffff) + (all >> 16);
		all = (all & 0xffff) + (all >> 16);
		return refuse(all == h->udp.check ? UNFINISHED_CHECKSUM : BAD_CHECKSUM);
	}

	/* Handler::decide, after Handler::screen. The destination is known to be live. */
	struct in6_addr source = h->ip.saddr;
	if (is_live(&source) || bpf_map_lookup_elem(&kernel_addresses, &source))
		return refuse(SOURCE_OWN);

	/* Request::into_reply */
	__u8 station[ETH_ALEN];
	__builtin_memcpy(station, h->ether.h_source, ETH_ALEN);
	__builtin_memcpy(h->ether.h_source, h->ether.h_dest, ETH_ALEN);
	__builtin_memcpy(h->ether.h_dest, station, ETH_ALEN);
	h->ip.payload_len = h->udp.len;
	h->ip.hop_limit = 64; /* wire::HOP_LIMIT */
	h->ip.saddr = h->ip.daddr;
	h->ip.daddr = source;
	__be16 port = h->udp.source;
	h->udp.source = h->udp.dest;
	h->udp.dest = port;
	int padding = frame - ip_payload - datagram;
	if (padding && bpf_xdp_adjust_tail(ctx, -padding))
		return refuse(BAD_LENGTH);

	return count(REFLECTED, bpf_redirect_map(&ways_out, 0, BPF_F_BROADCAST));
}

/* The fields needed of the kernel's structures; CO-RE finds their offsets in the running kernel. */
struct ns_common {
	__u32 inum;
} __attribute__((preserve_access_index));
struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));
typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

/* Counts the frames redirected with native XDP that the driver accepted, and those that it dropped
 * for lack of room. Nothing else tells the two apart. The kernel calls this for all interfaces of
 * all namespaces. */
SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(count_frames, const struct net_device *from, const struct net_device *to, int sent,
	     int drops)
{
	if (from != to || to->ifindex != interface || to->nd_net.net->ns.inum != network)
		return 0;
	add(&frames, SENT, sent);
	add(&frames, UNSENT, drops);
	return 0;
}
