// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// Steering: which packets leave the kernel's way and go into a ring.
//
//   NIC queue q ──► steer ──┬─ UDP, our port, bound prefix, live address ──► xsks[q], the AF_XDP ring of q
//                           └─ everything else, untouched ─────────────────► kernel (NDP, ping, ssh, …)
//
// It reads packets and never writes them. What the maps hold is decided by src/xdp/program.rs; the load generator uses
// the same program with its own port and address to take its replies.
#include "headers.h"

// The kernel insists on a licence it knows for the helpers that need one.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

// Network byte order; set before the program is loaded, so that the verifier sees a constant.
const volatile __be16 service_port = 0;

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

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct headers *h = data;

	// One bounds check for all three headers. Anything shorter cannot be UDP over IPv6 without extension headers,
	// which is all that is steered: VLAN tags, extension headers and fragments are the kernel's.
	if (data + sizeof(*h) > end)
		return count(PASSED_OTHER, XDP_PASS);
	if (h->ether.h_proto != bpf_htons(ETH_P_IPV6) || h->ip.nexthdr != IPPROTO_UDP)
		return count(PASSED_OTHER, XDP_PASS);
	if (h->udp.dest != service_port)
		return count(PASSED_PORT, XDP_PASS);

	struct prefix_key key = { .length = 128, .address = h->ip.daddr };
	if (!bpf_map_lookup_elem(&bound_prefixes, &key))
		return count(PASSED_PREFIX, XDP_PASS);
	if (!bpf_map_lookup_elem(&live_addresses, &key.address))
		return count(PASSED_NOT_LIVE, XDP_PASS);

	// The flag is what is returned where no socket sits on this queue.
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	return count(action == XDP_REDIRECT ? STEERED : PASSED_NO_RING, action);
}
