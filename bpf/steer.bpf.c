// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// Steering: which packets leave the kernel's way and go into a ring.
//
//   NIC queue q ──► steer
//      ├─ UDP, our port, bound prefix, from one who
//      │  may ask, live address ──────────────────────► xsks[q], the AF_XDP ring of q
//      ├─ the same behind extension headers, fragments ► kernel, for the socket behind
//      ├─ from one who may not ask ───────────────────► nowhere, counted by reason
//      └─ everything else, untouched ─────────────────► kernel (NDP, ping, ssh, …)
//
// Where `hidden`, the live addresses are no addresses of the kernel, and it is to have no part in
// their prefixes:
//
//   NIC queue q ──► steer
//      ├─ UDP, our port, live address ────────────────► xsks[q]
//      ├─ the same behind extension headers, fragments ► kernel, for the socket behind
//      ├─ Neighbour Solicitation for a live address ──► xsks[q]
//      ├─ else to or for an address under a bound prefix
//      │  that is not one of the kernel's ────────────► nowhere: no answer, no ICMPv6 error
//      └─ everything else, untouched ─────────────────► kernel
//
// A second program, at tc, holds to that on whatever way a packet gets around this one
// (backstop.h).
//
// Where there are `replies`, requests to live addresses go no further than this program:
//
//   NIC queue q ──► steer ──► reflect
//      ├─ by the answering rules ──► rewritten, and out by the interface, `replies` times
//      └─ against them ────────────► nowhere, counted by reason
//
// Otherwise it reads packets and never writes them. What the maps hold is decided by
// src/xdp/program.rs; the load generator uses the same program with its own port and address to
// take its replies.
#include "backstop.h"
#include "behind.h"
#include "live.h"
#include "maps.h"
#include "reflect.h"
#include "sources.h"

// The kernel insists on a licence it knows for the helpers that need one.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline int into_ring(struct xdp_md *ctx, enum verdict verdict)
{
	// The flag is what is returned where no socket sits on this queue.
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, hidden ? XDP_DROP : XDP_PASS);
	return count(action == XDP_REDIRECT ? verdict : NO_RING, action);
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct headers *h = data;
	struct solicitation *s = data;

	// VLAN tags, extension headers and fragments are never steered: only UDP and ICMPv6
	// directly over IPv6 are.
	if (data + sizeof(h->ether) + sizeof(h->ip) > end)
		return count(PASSED_OTHER, XDP_PASS);
	if (h->ether.h_proto != bpf_htons(ETH_P_IPV6)) {
		if (h->ether.h_proto == bpf_htons(ETH_P_8021Q) ||
		    h->ether.h_proto == bpf_htons(ETH_P_8021AD))
			return tagged(ctx);
		return count(PASSED_OTHER, XDP_PASS);
	}
	bool request = false;
	if (h->ip.nexthdr == IPPROTO_UDP && data + sizeof(*h) <= end) {
		request = service_port && h->udp.dest == service_port;
		if (!request && !hidden)
			return count(PASSED_PORT, XDP_PASS);
	} else if (h->ip.nexthdr == IPPROTO_HOPOPTS || h->ip.nexthdr == IPPROTO_ROUTING ||
		   h->ip.nexthdr == IPPROTO_FRAGMENT || h->ip.nexthdr == IPPROTO_DSTOPTS) {
		return behind(ctx, sizeof(h->ether));
	} else if (!hidden) {
		return count(PASSED_OTHER, XDP_PASS);
	}

	// The address that the packet is about: where it goes, but for a solicitation the one that
	// it asks for.
	struct in6_addr address = h->ip.daddr;
	bool solicitation = false;
	if (hidden && h->ip.nexthdr == IPPROTO_ICMPV6 && data + sizeof(*s) <= end &&
	    s->icmp.icmp6_type == NEIGHBOUR_SOLICITATION &&
	    (s->ip.daddr.s6_addr[0] == 0xff || equal(s->ip.daddr, s->target))) {
		solicitation = true;
		address = s->target;
	}
	if (request && screened) {
		// Another station's, which the kernel does not take. In a frame for many it may be
		// ours, and goes the kernel's way: no reply of ours comes from a group.
		if (!is_for_us(data))
			return h->ether.h_dest[0] & 1 ? behind(ctx, sizeof(h->ether)) :
							count(PASSED_OTHER, XDP_PASS);
		if (address.s6_addr[0] == 0xff)
			return refuse(DESTINATION_MULTICAST);
		// That of a jumbogram (RFC 2675), for which the kernel takes the length of the
		// packet, however short.
		if (!h->udp.len)
			return behind(ctx, sizeof(h->ether));
	}
	if (!is_bound(address))
		return count(PASSED_PREFIX, XDP_PASS);
	if (request) {
		enum refusal refusal = screen(h->ip.saddr, h->udp.source);
		if (refusal != REFUSALS)
			return refuse(refusal);
	}
	if ((request || solicitation) && is_live(&address)) {
		if (request && !is_within_limit(h->ip.saddr))
			return refuse(SOURCE_OVER_LIMIT);
		if (request && replies)
			return reflect(ctx);
		// Whether it comes from an address of our own the worker knows without asking
		// another hash (Handler::decide), unless they move. A copy, since the verifier
		// wants to know that a packet's bytes are there.
		struct in6_addr source = h->ip.saddr;
		if (request && moving && is_live(&source))
			return refuse(SOURCE_OWN);
		return into_ring(ctx, request ? STEERED : SOLICITED);
	}
	if (!hidden)
		return count(PASSED_NOT_LIVE, XDP_PASS);
	if (bpf_map_lookup_elem(&kernel_addresses, &address))
		return count(PASSED_KERNEL, XDP_PASS);
	return count(DROPPED_HIDDEN, XDP_DROP);
}

// Called by user space, not by packets: the first `change->count` staged addresses become live, or
// go. Returns how many did, in order, until one that was there already, or was not. One call for
// many, the keys not copied, and where it stopped is known: the batch commands of the system call
// have none of the three.
SEC("syscall")
int change_live(struct change *change)
{
	const __u32 zero = 0;
	struct staged *from = bpf_map_lookup_elem(&staged, &zero);
	__u32 done;

	if (!from)
		return 0;
	// Each change waits for memory, takes a lock, and so keeps the next from waiting meanwhile.
	// Looking up takes none: the processor waits for several at once, and the changes then find
	// what they need in its cache.
	for (done = 0; done < STAGED && done < change->count; done++)
		bpf_map_lookup_elem(&live_addresses, &from->addresses[done]);
	for (done = 0; done < STAGED && done < change->count; done++) {
		const struct in6_addr *address = &from->addresses[done];
		long error;
		if (change->remove)
			error = bpf_map_delete_elem(&live_addresses, address);
		else
			error = bpf_map_update_elem(&live_addresses, address, &zero, BPF_NOEXIST);
		if (error) {
			change->error = -error;
			break;
		}
	}
	return done;
}
