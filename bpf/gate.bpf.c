// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//
// The gate: this machine's own services, at addresses that move.
//
//   NIC ──► gate_in ──► marked ──► the kernel ──► a service
//      ├─ TCP of a connection that the kernel has ────► kernel, whatever became of the address
//      ├─ TCP that opens one, live address, service ──► its listener, wherever that is bound
//      ├─ UDP, live address or flow in use, service ──► its socket
//      ├─ ICMPv6 error about one of these ────────────► kernel
//      ├─ Neighbour Solicitation for a live address,
//      │  or one that a connection or flow uses ──────► answered here
//      ├─ else to or for an address under the prefix
//      │  that is not one of the kernel's ────────────► dropped: no RST, no ICMPv6 error
//      └─ everything else, untouched ─────────────────► kernel
//
//   a service ──► the kernel ──► gate_out ──► NIC
//      ├─ UDP of a service bound elsewhere ───────────► from the address and port that were asked
//      ├─ from a revoked address, an ICMPv6 error
//      │  about a hidden one ─────────────────────────► dropped
//      └─ everything else, untouched
//
// The kernel takes packets under the prefix only with the mark (netlink::Delivery), and only this
// program sets it: without it, the kernel is silent about every address that it does not own.
#include "advertise.h"
#include "gate.h"

// The kernel requires a known licence for some helpers.
char LICENSE[] SEC("license") = "Dual MIT/GPL";

// A packet, and what its extension headers lead to.
struct packet {
	struct ipv6hdr ip;
	__u32 at; // offset of the header of protocol `next`
	__u8 next;
};

struct ports {
	__be16 source;
	__be16 dest;
};

// Follows the extension headers, by the rules of find_between (behind.h). OUTCOMES if it found TCP,
// UDP or ICMPv6.
//
// No fragment passes. A later one names no port, so it cannot be judged. And of a datagram whose
// rest never comes, the kernel would tell the sender (Time Exceeded).
static __always_inline enum outcome walk(struct __sk_buff *skb, struct packet *packet)
{
	for (__u32 number = 0; number <= EXTENSIONS; number++) {
		struct extension extension;

		switch (packet->next) {
		case IPPROTO_TCP:
		case IPPROTO_UDP:
		case IPPROTO_ICMPV6:
			return OUTCOMES;
		case IPPROTO_FRAGMENT:
			return FRAGMENTED;
		case IPPROTO_HOPOPTS:
			if (number)
				return UNKNOWN_HEADER;
			break;
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			break;
		default:
			return UNKNOWN_HEADER;
		}
		if (bpf_skb_load_bytes(skb, packet->at, &extension, sizeof(extension)))
			return TRUNCATED;
		if (packet->next == IPPROTO_ROUTING && extension.segments_left)
			return UNKNOWN_HEADER;
		packet->next = extension.next;
		packet->at += 8 * (extension.length + 1);
	}
	return UNKNOWN_HEADER;
}

static __always_inline void set_tuple(struct bpf_sock_tuple *tuple, const struct in6_addr *client,
				      __be16 client_port, const struct in6_addr *address,
				      __be16 port)
{
	__builtin_memcpy(tuple->ipv6.saddr, client, sizeof(*client));
	__builtin_memcpy(tuple->ipv6.daddr, address, sizeof(*address));
	tuple->ipv6.sport = client_port;
	tuple->ipv6.dport = port;
}

static __always_inline struct service *find_service(__u8 protocol, __be16 port)
{
	struct service_key key = { .protocol = protocol, .port = port };

	return bpf_map_lookup_elem(&services, &key);
}

// The tuple by which a service's socket is found.
static __always_inline void set_listener(struct bpf_sock_tuple *tuple,
					 const struct service *service)
{
	if (!is_any(&service->address))
		__builtin_memcpy(tuple->ipv6.daddr, &service->address, sizeof(service->address));
	tuple->ipv6.dport = service->port;
}

// Says who came.
static __always_inline void tell(const struct packet *packet, struct ports ports, __u32 service)
{
	struct arrival arrival = {
		.client = packet->ip.saddr,
		.address = packet->ip.daddr,
		.client_port = ports.source,
		.port = ports.dest,
		.service = service,
	};

	add(&arrived, service, 1);
	if (bpf_ringbuf_output(&arrivals, &arrival, sizeof(arrival), 0))
		add(&outcomes, ARRIVAL_LOST, 1);
}

// The state of the kernel's socket for exactly this connection, or 0 if it has none. A listener,
// which a tuple finds as well, is none.
static __always_inline __u32 find_connection(struct __sk_buff *skb, struct bpf_sock_tuple *tuple)
{
	struct bpf_sock *socket =
		bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);

	if (!socket)
		return 0;
	__u32 state = socket->state;
	bpf_sk_release(socket);
	return state == BPF_TCP_LISTEN ? 0 : state;
}

static __always_inline int tcp(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_sock_tuple tuple = {};
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, packet->at, &tcp, sizeof(tcp)))
		return drop(TRUNCATED);
	struct ports ports = { tcp.source, tcp.dest };
	set_tuple(&tuple, &packet->ip.saddr, tcp.source, &packet->ip.daddr, tcp.dest);
	__u32 state = find_connection(skb, &tuple);
	struct service *service;
	if (state) {
		// The segment that completes the handshake. Whoever only sends the first one, from
		// whatever source, is no arrival.
		if (state == BPF_TCP_NEW_SYN_RECV && tcp.ack && !tcp.syn && !tcp.rst) {
			service = find_service(IPPROTO_TCP, tcp.dest);
			if (service)
				tell(packet, ports, service->number);
		}
		keep(&packet->ip.daddr, clock());
		return deliver(skb, TCP_FLOW);
	}
	if (tcp.syn ? tcp.ack || tcp.rst || tcp.fin : !tcp.ack || tcp.rst)
		return drop(NO_CONNECTION);
	if (!is_live_now(&packet->ip.daddr))
		return drop(tcp.syn ? NOT_LIVE : NO_CONNECTION);
	service = find_service(IPPROTO_TCP, tcp.dest);
	if (!service)
		return drop(NO_SERVICE);

	set_listener(&tuple, service);
	struct bpf_sock *listener =
		bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!listener)
		return drop(NO_LISTENER);
	enum outcome outcome = tcp.syn ? TCP_OPENED : TCP_COOKIE;
	if (listener->state != BPF_TCP_LISTEN)
		outcome = NO_LISTENER;
	else if (!tcp.syn && bpf_tcp_check_syncookie(listener, (void *)&packet->ip,
						     sizeof(packet->ip), &tcp, sizeof(tcp)))
		outcome = NO_CONNECTION;
	else if (bpf_sk_assign(skb, listener, 0))
		outcome = UNASSIGNED;
	bpf_sk_release(listener);
	if (outcome != TCP_OPENED && outcome != TCP_COOKIE)
		return drop(outcome);
	if (outcome == TCP_COOKIE)
		tell(packet, ports, service->number);
	return deliver(skb, outcome);
}

// Has replies to this client port leave from the address that it asked last.
static __always_inline void remember(const struct flow_key *flow, __be16 port, __u64 now)
{
	struct reply_key key = {
		.client = flow->client,
		.client_port = flow->client_port,
		.port = port,
	};
	struct reply *reply = bpf_map_lookup_elem(&replies, &key);

	if (reply && reply->port == flow->port && equal(reply->address, flow->address)) {
		reply->used = now;
		return;
	}
	struct reply fresh = { .used = now, .address = flow->address, .port = flow->port };
	bpf_map_update_elem(&replies, &key, &fresh, BPF_ANY);
}

static __always_inline int udp(struct __sk_buff *skb, const struct packet *packet)
{
	const __u64 now = clock();
	struct bpf_sock_tuple tuple = {};
	struct udphdr udp;

	if (bpf_skb_load_bytes(skb, packet->at, &udp, sizeof(udp)))
		return drop(TRUNCATED);
	struct flow_key key = {
		.client = packet->ip.saddr,
		.address = packet->ip.daddr,
		.client_port = udp.source,
		.port = udp.dest,
	};
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);
	bool young = flow && is_younger(flow->used, now, idle);
	if (!young && !is_live_now(&key.address))
		return drop(NOT_LIVE);
	struct service *service = find_service(IPPROTO_UDP, udp.dest);
	if (!service)
		return drop(NO_SERVICE);

	set_tuple(&tuple, &key.client, udp.source, &key.address, udp.dest);
	set_listener(&tuple, service);
	struct bpf_sock *socket =
		bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return drop(NO_LISTENER);
	long error = bpf_sk_assign(skb, socket, 0);
	bpf_sk_release(socket);
	if (error)
		return drop(UNASSIGNED);

	if (flow) {
		flow->used = now;
	} else {
		struct flow fresh = { .used = now };
		bpf_map_update_elem(&flows, &key, &fresh, BPF_ANY);
	}
	remember(&key, service->port, now);
	keep(&key.address, now);
	if (young)
		return deliver(skb, UDP_FLOW);
	struct ports ports = { udp.source, udp.dest };
	tell(packet, ports, service->number);
	return deliver(skb, UDP_BEGUN);
}

// An ICMPv6 error, which quotes a packet that this machine sent.
static __always_inline int error(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 at = packet->at + sizeof(struct icmp6hdr);
	struct bpf_sock_tuple tuple = {};
	struct ipv6hdr quoted;
	struct ports ports;

	if (bpf_skb_load_bytes(skb, at, &quoted, sizeof(quoted)) ||
	    bpf_skb_load_bytes(skb, at + sizeof(quoted), &ports, sizeof(ports)))
		return drop(TRUNCATED);
	if (quoted.version != 6 || !equal(quoted.saddr, packet->ip.daddr))
		return drop(ERROR_STRAY);
	if (quoted.nexthdr == IPPROTO_TCP) {
		set_tuple(&tuple, &quoted.daddr, ports.dest, &quoted.saddr, ports.source);
		if (find_connection(skb, &tuple))
			return deliver(skb, ERROR_PASSED);
	}
	if (quoted.nexthdr == IPPROTO_UDP) {
		struct flow_key key = {
			.client = quoted.daddr,
			.address = quoted.saddr,
			.client_port = ports.dest,
			.port = ports.source,
		};
		struct flow *flow = bpf_map_lookup_elem(&flows, &key);
		if (flow && is_younger(flow->used, clock(), idle))
			return deliver(skb, ERROR_PASSED);
	}
	return drop(ERROR_STRAY);
}

// Handles a Neighbour Solicitation, wherever it goes.
static __always_inline int solicited(struct __sk_buff *skb, const struct packet *packet, __u32 at,
				     bool hidden_address)
{
	struct in6_addr target;

	if (bpf_skb_load_bytes(skb, packet->at + sizeof(struct icmp6hdr), &target, sizeof(target)))
		return hidden_address ? drop(TRUNCATED) : HAND_ON;
	if (!is_hidden(&target))
		return hidden_address ? drop(BAD_SOLICITATION) : HAND_ON;
	if (is_revoked(&target))
		return drop(REVOKED);
	// Directly over IPv6: the kernel rejects extension headers here too (RFC 6980).
	if (packet->at != at + sizeof(struct ipv6hdr))
		return drop(BAD_SOLICITATION);
	if (!is_live_now(&target) && !is_kept(&target))
		return drop(NOT_SOLICITED);
	return advertise(skb, at);
}

// Decides about a packet whose IPv6 header starts at offset `at`.
static __always_inline int decide(struct __sk_buff *skb, __u32 at)
{
	struct packet packet;

	if (bpf_skb_load_bytes(skb, at, &packet.ip, sizeof(packet.ip)))
		return HAND_ON; // the kernel drops it
	bool hidden_address = is_hidden(&packet.ip.daddr);
	packet.next = packet.ip.nexthdr;
	packet.at = at + sizeof(packet.ip);
	// TCP and UDP carry no target address.
	if (!hidden_address && (packet.next == IPPROTO_TCP || packet.next == IPPROTO_UDP))
		return HAND_ON;
	enum outcome outcome = walk(skb, &packet);
	__u8 type = 0;
	if (outcome == OUTCOMES && packet.next == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, packet.at, &type, sizeof(type)))
			outcome = TRUNCATED;
		else if (type == NEIGHBOUR_SOLICITATION)
			return solicited(skb, &packet, at, hidden_address);
	}
	if (!hidden_address)
		return HAND_ON;
	if (outcome != OUTCOMES)
		return drop(outcome);
	if (skb->pkt_type)
		return drop(GROUP_FRAME);
	if (is_revoked(&packet.ip.daddr))
		return drop(REVOKED);
	if (packet.next == IPPROTO_TCP)
		return tcp(skb, &packet);
	if (packet.next == IPPROTO_UDP)
		return udp(skb, &packet);
	return type >= 1 && type <= 4 ? error(skb, &packet) : drop(ICMP_OTHER);
}

// Finds the IPv6 header behind priority tags (VLAN 0), which the kernel takes off. 0 if there is
// none, or the packet is of a VLAN; DROP for more tags than this looks behind.
static __always_inline __u32 find_ip(struct __sk_buff *skb)
{
	__be16 protocol = skb->protocol;
	__u32 at = sizeof(struct ethhdr);

	if (skb->vlan_present && skb->vlan_tci & 0xfff)
		return 0;
	for (__u32 number = 0; number <= TAGS; number++) {
		struct tag tag;
		if (protocol == bpf_htons(ETH_P_IPV6))
			return at;
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			return 0;
		if (bpf_skb_load_bytes(skb, at, &tag, sizeof(tag)) ||
		    tag.control & bpf_htons(0xfff))
			return 0;
		protocol = tag.protocol;
		at += sizeof(tag);
	}
	return DROP;
}

SEC("tc")
int gate_in(struct __sk_buff *skb)
{
	__u32 at = find_ip(skb);

	if (at == DROP)
		return drop(UNKNOWN_HEADER);
	// The kernel drops what is for another station.
	return !at || skb->pkt_type == OTHER_HOST ? HAND_ON : decide(skb, at);
}

// Adds a change to the UDP checksum of a datagram that the kernel still cuts into segments
// (UDP_SEGMENT). The field then has the sum of the pseudo-header alone, not complemented, whatever
// ip_summed says (udp6_hwcsum_outgoing), and bpf_l4_csum_replace would take it for a whole checksum
// on a device without checksum offload. The ports are summed up when the segments are made.
static __always_inline long change_pseudo_sum(struct __sk_buff *skb, __u32 at, __s64 change)
{
	__u16 sum;

	if (bpf_skb_load_bytes(skb, at, &sum, sizeof(sum)))
		return -1;
	__u64 total = (__u64)sum + (__u32)change;
	total = (total & 0xffff) + (total >> 16);
	total = (total & 0xffff) + (total >> 16);
	total = (total & 0xffff) + (total >> 16);
	sum = total;
	return bpf_skb_store_bytes(skb, at, &sum, sizeof(sum), 0);
}

static __always_inline long change_checksum(struct __sk_buff *skb, __u32 at, __s64 change,
					    __be16 port, __be16 asked)
{
	const __u64 flags = BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE;

	if (skb->gso_size)
		return change_pseudo_sum(skb, at, change);
	// The checksum may be left to the card, which bpf_l4_csum_replace knows.
	if (bpf_l4_csum_replace(skb, at, 0, change, flags | BPF_F_PSEUDO_HDR))
		return -1;
	return bpf_l4_csum_replace(skb, at, port, asked, flags | sizeof(asked));
}

// Has a datagram leave from the address and port that were asked.
static __always_inline int rename(struct __sk_buff *skb, struct packet *packet,
				  const struct reply *reply, __be16 port)
{
	__u32 check = packet->at + offsetof(struct udphdr, check);
	struct in6_addr address = reply->address;
	__be16 asked = reply->port;

	// A service that answers from there by itself.
	if (is_hidden(&packet->ip.saddr))
		address = packet->ip.saddr;
	__s64 change = bpf_csum_diff((__be32 *)&packet->ip.saddr, sizeof(address),
				     (__be32 *)&address, sizeof(address), 0);
	if (change_checksum(skb, check, change, port, asked) ||
	    bpf_skb_store_bytes(skb, packet->at, &asked, sizeof(asked), 0) ||
	    bpf_skb_store_bytes(skb, packet->at - sizeof(packet->ip) +
				     offsetof(struct ipv6hdr, saddr),
				&address, sizeof(address), 0))
		return drop(TRUNCATED);
	return count(REPLY_RENAMED, HAND_ON);
}

static __always_inline int reply(struct __sk_buff *skb, struct packet *packet, bool fragment)
{
	struct ports ports;

	if (bpf_skb_load_bytes(skb, packet->at, &ports, sizeof(ports)))
		return HAND_ON;
	struct reply_key key = {
		.client = packet->ip.daddr,
		.client_port = ports.dest,
		.port = ports.source,
	};
	struct reply *reply = bpf_map_lookup_elem(&replies, &key);
	if (!reply || !is_younger(reply->used, clock(), idle))
		return is_loopback(&packet->ip.saddr) ? drop(REPLY_LATE) : HAND_ON;
	struct in6_addr address = reply->address;
	if (is_revoked(&address))
		return drop(REVOKED);
	// Later fragments name no port. They would leave from an address that was never asked, and
	// tell it.
	if (fragment)
		return drop(REPLY_FRAGMENTED);
	reply->used = clock();
	return rename(skb, packet, reply, ports.source);
}

// Whether the kernel is about to say something about a hidden address: in an error, from whatever
// address of its own, or from that address. Only this program advertises one.
static __always_inline bool is_telling(struct __sk_buff *skb, const struct packet *packet,
				       bool hidden_address)
{
	struct in6_addr quoted;
	__u8 type;

	if (bpf_skb_load_bytes(skb, packet->at, &type, sizeof(type)))
		return hidden_address;
	if (hidden_address)
		return type != NEIGHBOUR_ADVERTISEMENT;
	if (type > 4 || bpf_skb_load_bytes(skb,
					   packet->at + sizeof(struct icmp6hdr) +
						   offsetof(struct ipv6hdr, daddr),
					   &quoted, sizeof(quoted)))
		return false;
	return is_hidden(&quoted);
}

SEC("tc")
int gate_out(struct __sk_buff *skb)
{
	struct packet packet;
	__u32 at = sizeof(struct ethhdr);

	if (skb->protocol != bpf_htons(ETH_P_IPV6) ||
	    (skb->vlan_present && skb->vlan_tci & 0xfff) ||
	    bpf_skb_load_bytes(skb, at, &packet.ip, sizeof(packet.ip)))
		return HAND_ON;
	packet.at = at + sizeof(packet.ip);
	packet.next = packet.ip.nexthdr;
	bool hidden_address = is_hidden(&packet.ip.saddr);
	if (hidden_address && is_revoked(&packet.ip.saddr))
		return drop(REVOKED);
	// A gate that was started again knows no address in use. Clients may need an advertisement
	// before they can send, so the service's own segments count as well.
	if (hidden_address && packet.next == IPPROTO_TCP)
		keep(&packet.ip.saddr, clock());
	if (packet.next == IPPROTO_UDP)
		return reply(skb, &packet, false);
	if (packet.next == IPPROTO_ICMPV6 && is_telling(skb, &packet, hidden_address))
		return drop(KERNEL_SILENCED);
	struct fragment fragment;
	if (packet.next == IPPROTO_FRAGMENT &&
	    !bpf_skb_load_bytes(skb, packet.at, &fragment, sizeof(fragment)) &&
	    fragment.next == IPPROTO_UDP && !(fragment.offset & bpf_htons(0xfff8))) {
		packet.at += sizeof(fragment);
		return reply(skb, &packet, true);
	}
	return HAND_ON;
}
