#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces, connected by a virtual cable, each with its own ranks under
# `torchrun --nnodes 2`, on the CPU. The video must be the same as that of a single rank. Needs root and iproute2.
#
#   tests/campaigns/multinode.sh [frames] [ranks per node]
set -euo pipefail
cd "$(dirname "$0")/../.."

frames=${1:-21}
per_node=${2:-1}
bin=$PWD/.venv/bin
work=$(mktemp -d)
export OMP_NUM_THREADS=1
nodes=(vinfinity-a vinfinity-b)

remove() {
    for node in "${nodes[@]}"; do ip netns delete "$node" 2>/dev/null || true; done
    rm -rf "$work"
}
trap remove EXIT

for node in "${nodes[@]}"; do ip netns delete "$node" 2>/dev/null || true; done
ip netns add "${nodes[0]}"
ip netns add "${nodes[1]}"
ip link add cable-a netns "${nodes[0]}" type veth peer name cable-b netns "${nodes[1]}"
for index in 0 1; do
    link=cable-$([ $index = 0 ] && echo a || echo b)
    ip -n "${nodes[$index]}" address add "10.77.0.$((index + 1))/24" dev "$link"
    ip -n "${nodes[$index]}" link set "$link" up
    ip -n "${nodes[$index]}" link set lo up
done

run=(generate --prompt "a red ball bouncing over green grass" --frames "$frames" --steps 8
    --sampler sde-dpmsolver++ --device cpu)

# node RANK: starts the ranks of one node
node() {
    local link=cable-$([ "$1" = 0 ] && echo a || echo b)
    ip netns exec "${nodes[$1]}" env GLOO_SOCKET_IFNAME="$link" "$bin/torchrun" --nnodes 2 --node-rank "$1" \
        --nproc-per-node "$per_node" --master-addr 10.77.0.1 --master-port 29577 -m vinfinity "${run[@]}" \
        --out "$work/two.mp4" --save-latents "$work/two.safetensors"
}

node 1 &
second=$!
node 0
wait $second
"$bin/vinfinity" "${run[@]}" --out "$work/one.mp4" --save-latents "$work/one.safetensors"

"$bin/python" - "$work" "$per_node" <<'PYTHON'
import sys
from pathlib import Path

from safetensors.torch import load_file

from vinfinity.media.reader import open_reader

work, per_node = Path(sys.argv[1]), int(sys.argv[2])
one, two = (load_file(work / f"{name}.safetensors")["latents"] for name in ("one", "two"))
difference = (one - two).abs().max().item()
frames = len([*open_reader(work / "two.mp4")])
print(f"{frames} frames on 2 nodes with {per_node} ranks each: largest difference to one rank {difference:.1e}")
sys.exit(difference > 1e-4 or frames != one.shape[2])
PYTHON
