/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What user space and the gate's programs share. src/gate/program.rs is the other side.
 */
#pragma once

#include <linux/in.h>
#include <linux/tcp.h>

#include "extensions.h"
#include "tc.h"
#include "timed.h"

/* Not that of the backstop: each mark opens only its own prefix, so a gate and a server may share
 * an interface. src/net/netlink/route.rs has the same. */
#define GATE_MARK 0x66690000

/* The interface's Ethernet address in memory order, then two zero bytes. User space writes it. */
volatile __u64 station = 0;

/* How long an unused UDP flow may go on at an expired address, in nanoseconds. */
volatile __u64 idle = 0;

/* How long an address is answered for at the link layer after its last packet of a connection or
 * flow, in nanoseconds. A router or neighbour asks again within a minute, also for an address that
 * has expired: without an answer, what goes on there would end. */
volatile __u64 kept = 0;

/* Index into the map `outcomes`, one for each packet that is to or for a hidden address, or leaves
 * for one. src/gate/program.rs names them in the same order. */
enum outcome {
	TCP_OPENED, /* a connection request, to the listener */
	TCP_COOKIE, /* the last segment of a handshake by SYN cookie, to the listener */
	TCP_FLOW, /* a segment of a connection that the kernel has */
	UDP_BEGUN, /* a datagram that begins a flow */
	UDP_FLOW, /* another datagram of a flow */
	ADVERTISED, /* a solicitation that the program answered */
	ERROR_PASSED, /* an ICMPv6 error about a connection or flow */
	NOT_LIVE, /* a new connection or flow at an address that is not live */
	NO_SERVICE, /* a port that no service has */
	NO_LISTENER, /* a service that nobody listens for */
	NO_CONNECTION, /* a TCP segment that no connection has, and that opens none */
	NOT_SOLICITED, /* a solicitation for an address that is not live */
	BAD_SOLICITATION, /* one that RFC 4861 section 7.1.1 rejects */
	ERROR_STRAY, /* an ICMPv6 error about nothing of ours */
	ICMP_OTHER, /* other ICMPv6, such as echo requests */
	FRAGMENTED, /* a fragment */
	UNKNOWN_HEADER, /* another protocol, or extension headers that end nowhere */
	TRUNCATED, /* too short for its headers */
	GROUP_FRAME, /* unicast IPv6 in a multicast or broadcast frame */
	REVOKED, /* to or from a revoked address */
	UNASSIGNED, /* the kernel would not give it to the listener */
	REPLY_RENAMED, /* a datagram of a service, from the address that was asked */
	REPLY_LATE, /* a datagram from loopback that no flow asked for, dropped */
	REPLY_FRAGMENTED, /* a fragment of such a datagram, dropped */
	KERNEL_SILENCED, /* ICMPv6 that the kernel would have sent about a hidden address */
	ARRIVAL_LOST, /* not a packet: an arrival that `arrivals` had no room for */
	OUTCOMES,
};

struct service_key {
	__u8 protocol;
	__u8 zero;
	__be16 port; /* as clients ask for it */
};

/* Where a service listens. An address `::` stands for the address that was asked: a socket that is
 * bound to any address has it. */
struct service {
	struct in6_addr address;
	__u32 number;
	__be16 port;
	__u16 zero;
};

struct flow_key {
	struct in6_addr client;
	struct in6_addr address;
	__be16 client_port;
	__be16 port;
};

struct flow {
	__u64 used; /* monotonic clock, nanoseconds */
};

/* A datagram that a service sends. A service bound to loopback answers from there, so the address
 * that was asked is not in it: of several that one client port asks, the last one counts. */
struct reply_key {
	struct in6_addr client;
	__be16 client_port;
	__be16 port; /* where the service listens */
};

struct reply {
	__u64 used;
	struct in6_addr address;
	__be16 port;
	__u16 zero[3];
};

/* A connection whose handshake is complete, or a new flow. */
struct arrival {
	struct in6_addr client;
	struct in6_addr address;
	__be16 client_port;
	__be16 port;
	__u32 service;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256); /* SERVICES in src/gate/program.rs */
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

/* The machine's own addresses under the prefix. Their packets are the kernel's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct in6_addr);
	__type(value, __u32);
} kernel_addresses SEC(".maps");

/* Sized by user space, as the LRU hashes are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct in6_addr);
	__type(value, __u32);
} revoked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct reply_key);
	__type(value, struct reply);
} replies SEC(".maps");

/* When an address was last used, roughly. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct in6_addr);
	__type(value, __u64);
} used_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} arrivals SEC(".maps");

/* Arrivals by service. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcomes SEC(".maps");

static __always_inline int count(enum outcome outcome, int action)
{
	add(&outcomes, outcome, 1);
	return action;
}

static __always_inline int drop(enum outcome outcome)
{
	return count(outcome, DROP);
}

/* Has the kernel take a packet for its own. */
static __always_inline int deliver(struct __sk_buff *skb, enum outcome outcome)
{
	set_mark(skb, GATE_MARK);
	return count(outcome, HAND_ON);
}

/* Whether an address is under the prefix and not the kernel's. */
static __always_inline bool is_hidden(const struct in6_addr *address)
{
	__u64 network;

	__builtin_memcpy(&network, address, sizeof(network));
	return network == subnet && !bpf_map_lookup_elem(&kernel_addresses, address);
}

static __always_inline bool is_revoked(const struct in6_addr *address)
{
	return bpf_map_lookup_elem(&revoked, address);
}

/* The monotonic clock as of the last tick, in nanoseconds: these are ages of seconds. */
static __always_inline __u64 clock(void)
{
	return bpf_ktime_get_coarse_ns();
}

static __always_inline bool is_younger(__u64 used, __u64 now, __u64 age)
{
	/* Another processor may have used it after this one asked for the time. */
	return used > now || now - used < age;
}

/* Notes that a connection or flow uses an address. Once a second is enough, and mostly only reads
 * what other processors read as well. */
static __always_inline void keep(const struct in6_addr *address, __u64 now)
{
	__u64 *used = bpf_map_lookup_elem(&used_addresses, address);

	if (!used)
		bpf_map_update_elem(&used_addresses, address, &now, BPF_ANY);
	else if (!is_younger(*used, now, 1000000000))
		*used = now;
}

static __always_inline bool is_kept(const struct in6_addr *address)
{
	const __u64 *used = bpf_map_lookup_elem(&used_addresses, address);

	return used && is_younger(*used, clock(), kept);
}
