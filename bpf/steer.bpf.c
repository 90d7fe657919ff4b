// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// Steering: which packets leave the kernel's way and go into a ring.
//
//   NIC queue q ──► steer ──┬─ UDP, our port, bound prefix, live address ──► xsks[q], the AF_XDP ring of q
//                           └─ everything else, untouched ─────────────────► kernel (NDP, ping, ssh, …)
//
// Where `hidden`, the live addresses are no addresses of the kernel, and it is to have no part in their prefixes:
//
//   NIC queue q ──► steer ──┬─ UDP, our port, live address ────────────────► xsks[q]
//                           ├─ Neighbour Solicitation for a live address ──► xsks[q]
//                           ├─ else to or for an address under a bound prefix
//                           │  that is not one of the kernel's ────────────► nowhere: no answer, no ICMPv6 error
//                           └─ everything else, untouched ─────────────────► kernel
//
// It reads packets and never writes them. What the maps hold is decided by src/xdp/program.rs; the load generator uses
// the same program with its own port and address to take its replies.
#include "headers.h"

// The kernel insists on a licence it knows for the helpers that need one.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

// Constants: set before the program is loaded, so that the verifier takes out what they rule out.
const volatile __be16 service_port = 0; // network byte order; 0, which is no port, steers no UDP at all
const volatile bool hidden = false;

// Decided first, by prefix: a packet for a stranger costs one short trie walk and no hash.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC); // the only kind of trie there is
	__uint(max_entries, 1024);
	__type(key, struct prefix_key);
	__type(value, __u32);
} bound_prefixes SEC(".maps");

// Decided second, exactly: a hash, so that the cost does not grow with the number of addresses.
// Sized by user space before it is loaded.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct in6_addr);
	__type(value, __u32);
} live_addresses SEC(".maps");

// Addresses on their way into `live_addresses` or out of it, written by user space, which has this mapped.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct staged);
} staged SEC(".maps");

// Where hidden: the addresses under bound prefixes that the kernel answers for, such as the machine's own.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct in6_addr);
	__type(value, __u32);
} kernel_addresses SEC(".maps");

// Queue number to the socket bound to that queue. Sized by user space.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

static __always_inline int count(__u32 verdict, int action)
{
	__u64 *counter = bpf_map_lookup_elem(&verdicts, &verdict);
	if (counter)
		*counter += 1; // per CPU, and a program is not preempted by itself
	return action;
}

static __always_inline int into_ring(struct xdp_md *ctx, __u32 verdict)
{
	// The flag is what is returned where no socket sits on this queue.
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, hidden ? XDP_DROP : XDP_PASS);
	return count(action == XDP_REDIRECT ? verdict : NO_RING, action);
}

// By value: the headers are packed, and no pointer may be taken into them.
static __always_inline bool equal(struct in6_addr a, struct in6_addr b)
{
	return a.s6_addr32[0] == b.s6_addr32[0] && a.s6_addr32[1] == b.s6_addr32[1] &&
	       a.s6_addr32[2] == b.s6_addr32[2] && a.s6_addr32[3] == b.s6_addr32[3];
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct headers *h = data;
	struct solicitation *s = data;

	// VLAN tags, extension headers and fragments are never steered: only UDP and ICMPv6 directly over IPv6 are.
	if (data + sizeof(h->ether) + sizeof(h->ip) > end || h->ether.h_proto != bpf_htons(ETH_P_IPV6))
		return count(PASSED_OTHER, XDP_PASS);
	bool request = false;
	if (h->ip.nexthdr == IPPROTO_UDP && data + sizeof(*h) <= end) {
		request = service_port && h->udp.dest == service_port;
		if (!request && !hidden)
			return count(PASSED_PORT, XDP_PASS);
	} else if (!hidden) {
		return count(PASSED_OTHER, XDP_PASS);
	}

	// The address that the packet is about: where it goes, but for a solicitation the one that it asks for.
	struct prefix_key key = { .length = 128, .address = h->ip.daddr };
	bool solicitation = false;
	if (hidden && h->ip.nexthdr == IPPROTO_ICMPV6 && data + sizeof(*s) <= end &&
	    s->icmp.icmp6_type == NEIGHBOUR_SOLICITATION &&
	    (s->ip.daddr.s6_addr[0] == 0xff || equal(s->ip.daddr, s->target))) {
		solicitation = true;
		key.address = s->target;
	}
	if (!bpf_map_lookup_elem(&bound_prefixes, &key))
		return count(PASSED_PREFIX, XDP_PASS);
	if ((request || solicitation) && bpf_map_lookup_elem(&live_addresses, &key.address))
		return into_ring(ctx, request ? STEERED : SOLICITED);
	if (!hidden)
		return count(PASSED_NOT_LIVE, XDP_PASS);
	if (bpf_map_lookup_elem(&kernel_addresses, &key.address))
		return count(PASSED_KERNEL, XDP_PASS);
	return count(DROPPED_HIDDEN, XDP_DROP);
}

// Called by user space, not by packets: the first `change->count` staged addresses become live, or cease to be. Returns how
// many did, in order, until one that was live already, or was not. One call for many, the keys not copied, and where it stopped
// is known: the batch commands of the system call have none of the three.
SEC("syscall")
int change_live(struct change *change)
{
	const __u32 zero = 0;
	struct staged *from = bpf_map_lookup_elem(&staged, &zero);
	__u32 done;

	if (!from)
		return 0;
	// Each change waits for memory, takes a lock, and so keeps the next from waiting meanwhile. Looking up takes none: the
	// processor waits for several at once, and the changes then find what they need in its cache.
	for (done = 0; done < STAGED && done < change->count; done++)
		bpf_map_lookup_elem(&live_addresses, &from->addresses[done]);
	for (done = 0; done < STAGED && done < change->count; done++) {
		const struct in6_addr *address = &from->addresses[done];
		long error = change->remove ? bpf_map_delete_elem(&live_addresses, address)
					    : bpf_map_update_elem(&live_addresses, address, &zero, BPF_NOEXIST);
		if (error) {
			change->error = -error;
			break;
		}
	}
	return done;
}
