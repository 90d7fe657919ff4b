/* SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only */
/*
 * What may stand between Ethernet and the headers that the programs look for: VLAN tags, and the
 * extension headers of IPv6.
 */
#pragma once

#include "headers.h"

/* More than any sender needs. RFC 8200 section 4.1 lists seven, each once, of which two belong to
 * IPsec. */
#define EXTENSIONS 6

/* Most VLAN tags to look behind. */
#define TAGS 3

struct tag {
	__be16 control; /* its lower 12 bits are the VLAN ID */
	__be16 protocol;
} __attribute__((packed));

/* The first bytes of hop-by-hop options, routing header and destination options (RFC 8200 section
 * 4). */
struct extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes, without the first 8 */
	__u8 type;
	__u8 segments_left; /* in a routing header */
} __attribute__((packed));

struct fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* 13 bits, two reserved bits, more-fragments flag */
	__be32 identification;
} __attribute__((packed));
