// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// Steering: which packets bypass the kernel and go to a ring.
//
//   NIC queue q ──► steer
//      ├─ UDP, our port, bound prefix, allowed source,
//      │  live address ───────────────────────────────► xsks[q], the AF_XDP ring of q
//      ├─ the same behind extension headers, fragments ► kernel, for the socket behind
//      ├─ source not allowed ─────────────────────────► dropped, counted by reason
//      └─ everything else, untouched ─────────────────► kernel (NDP, ping, ssh, …)
//
// If `hidden`, the kernel does not own the live addresses and must ignore their prefixes:
//
//   NIC queue q ──► steer
//      ├─ UDP, our port, live address ────────────────► xsks[q]
//      ├─ the same behind extension headers, fragments ► kernel, for the socket behind
//      ├─ Neighbour Solicitation for a live address ──► xsks[q]
//      ├─ else to or for an address under a bound prefix
//      │  that is not one of the kernel's ────────────► dropped: no answer, no ICMPv6 error
//      └─ everything else, untouched ─────────────────► kernel
//
// A tc program enforces the same for packets that get around this one (backstop.h).
//
// With `replies`, this program answers requests to live addresses itself:
//
//   NIC queue q ──► steer ──► reflect
//      ├─ by the answering rules ──► rewritten, and sent out of the interface, `replies` times
//      └─ against them ────────────► dropped, counted by reason
//
// Otherwise it never writes to packets. src/xdp/program.rs fills the maps. The load generator uses
// the same program, with its own port and address, to receive its replies.
#include "backstop.h"
#include "behind.h"
#include "live.h"
#include "maps.h"
#include "reflect.h"
#include "sources.h"

// The kernel requires a known licence for some helpers.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __always_inline int into_ring(struct xdp_md *ctx, enum verdict verdict)
{
	// The action in the flags applies if this queue has no socket.
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

	// Only UDP and ICMPv6 directly over IPv6 are steered, so no VLAN tags, extension headers or
	// fragments.
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

	// The address that the packet is about: its destination, or the target of a solicitation.
	struct in6_addr address = h->ip.daddr;
	bool solicitation = false;
	if (hidden && h->ip.nexthdr == IPPROTO_ICMPV6 && data + sizeof(*s) <= end &&
	    s->icmp.icmp6_type == NEIGHBOUR_SOLICITATION &&
	    (s->ip.daddr.s6_addr[0] == 0xff || equal(s->ip.daddr, s->target))) {
		solicitation = true;
		address = s->target;
	}
	if (request && screened) {
		// For another station, so the kernel drops it. A multicast or broadcast frame may
		// be for us, and goes to the kernel: a reply never comes from a group address.
		if (!is_for_us(data))
			return h->ether.h_dest[0] & 1 ? behind(ctx, sizeof(h->ether)) :
							count(PASSED_OTHER, XDP_PASS);
		if (address.s6_addr[0] == 0xff)
			return refuse(DESTINATION_MULTICAST);
		// UDP length 0, as in a jumbogram (RFC 2675): the kernel takes the length of the
		// packet instead, however short.
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
		// Fixed addresses: the worker knows its own addresses without another hash lookup
		// (Handler::decide). Moving ones are checked here. A copy, because the verifier
		// demands a bounds check of packet bytes.
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

// Called by user space, not by packets. Makes the first `change->count` staged addresses live, or
// removes them. Returns how many it changed, in order; it stops at one that is already there, or
// missing. It copies no keys. The batch commands of bpf(2) copy each key, and reject BPF_NOEXIST.
SEC("syscall")
int change_live(struct change *change)
{
	const __u32 zero = 0;
	struct staged *from = bpf_map_lookup_elem(&staged, &zero);
	__u32 done;

	if (!from)
		return 0;
	// Each change waits for memory under a lock, which serialises the waits. A lookup takes no
	// lock, so the processor overlaps several, and the changes then hit its cache.
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
