#!/usr/bin/env bash
# Compares other programs with Sixhop's engines, on the same lab and with the same load: one reply
# per request, since none of them sends more.
#
#   testpmd   DPDK's forwarder on its AF_XDP driver; 5tswap swaps addresses and ports as we do
#   inetd     the UDP echo service (RFC 862) of the Internet super-server: a plain socket that
#             handles one datagram at a time
#
# On Debian 12 (the number in librte-net-af-xdp23 changes with DPDK's release):
#   apt-get install --no-install-recommends dpdk librte-net-af-xdp23 librte-meta-mempool \
#       openbsd-inetd netbase
# As root:
#   bench/peers/run.sh target/release/sixhop [further flags of compare, such as --out DIR]
set -eu -o pipefail

sixhop=${1:?usage: bench/peers/run.sh target/release/sixhop [FLAG...]}
shift
for program in dpdk-testpmd inetd; do
  command -v "$program" >/dev/null || { echo "$program is missing: the head of $0 names its package" >&2; exit 1; }
done

# inetd's echo service has its port from /etc/services, 7, and answers from the address that it is
# bound to.
"$sixhop" compare --addresses 1 --replies 1 --port 7 --engines socket,socket-batch,afxdp \
  --peer "testpmd=dpdk-testpmd --no-huge -m 512 --no-pci -l {core},{client-core} --main-lcore {client-core} \
    --file-prefix sixhop --vdev net_af_xdp0,iface={interface} -- --forward-mode=5tswap -a --nb-cores=1 --total-num-mbufs=16384" \
  --peer "inetd=sh -c 'echo [{address}]:echo dgram udp6 wait root internal | exec taskset -c {core} inetd -d /dev/stdin'" \
  "$@"
