#!/usr/bin/env bash
# Runs the job scripts of examples/slurm on a real SLURM, on the CPU: a controller and one node on this machine, stopped at
# the end. Needs root and Debian or Ubuntu; installs slurm-wlm and munge if they are missing.
#
#   tests/campaigns/slurm.sh [log]
set -euo pipefail
cd "$(dirname "$0")/../.."

export PATH=${BIN:-$PWD/.venv/bin}:$PATH OMP_NUM_THREADS=1
command -v slurmctld munged > /dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
}
log=${1:-/dev/stdout}
work=$(mktemp -d /tmp/vinfinity-slurm.XXXXXX)
host=$(hostname -s)
export SLURM_CONF=$work/slurm.conf
started=()

stop() {
    code=$?
    if [ $code != 0 ]; then tail -n 20 "$work"/*.log "$work"/slurmctld.out 2> /dev/null || true; fi
    for process in "${started[@]}"; do kill "$process" 2> /dev/null || true; done
    for process in "${started[@]}"; do while kill -0 "$process" 2> /dev/null; do sleep 0.2; done; done
    rm -rf "$work"
}
trap stop EXIT

say() { echo "$(date +%T) $*" | tee -a "$log" >&2; }

# ---- a cluster of one node, with two partitions; jobs of `urgent` preempt those of `cheap` ----

mkdir "$work"/{state,spool,jobs}
dd if=/dev/urandom of="$work/munge.key" bs=1024 count=1 status=none
chmod 400 "$work/munge.key"
chmod 755 "$work"
cat > "$work/slurm.conf" <<CONF
ClusterName=vinfinity
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.out
SlurmdLogFile=$work/slurmd.out
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=30
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:4 RealMemory=1000
PartitionName=cheap Nodes=$host Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=$host PriorityTier=10 PreemptMode=OFF
CONF
touch "$work"/gpu{0,1,2,3}
echo "NodeName=$host Name=gpu File=$work/gpu[0-3]" > "$work/gres.conf"

munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
    --log-file="$work/munge.out" --seed-file="$work/munge.seed" 2> /dev/null &
started+=($!)
while [ ! -S "$work/munge.socket" ]; do sleep 0.2; done
slurmctld -D -c > /dev/null 2>&1 &
started=($! "${started[@]}")
slurmd -D -N "$host" > /dev/null 2>&1 &
started=($! "${started[@]}")
for _ in $(seq 100); do
    [ "$(sinfo -h -p cheap -o %t 2> /dev/null)" = idle ] && break
    sleep 0.5
done
[ "$(sinfo -h -p cheap -o %t)" = idle ]
say "$(slurmctld -V): one node, 4 CPUs, up"

# ---- the jobs ----

video=(--prompt "a red ball bouncing over green grass" --frames 24 --steps 40 --device cpu "checkpoint.every=5 steps")

submit() { sbatch --parsable --chdir="$work/jobs" --output="$work/%x-%j.log" "$@"; }
state() { squeue -h -j "$1" -t all -o %T 2> /dev/null || echo gone; }
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p'; }

# wait_for DESCRIPTION SECONDS COMMAND...: waits until the command succeeds
wait_for() {
    local what=$1 limit=$2
    shift 2
    for _ in $(seq $((limit * 5))); do
        if "$@"; then say "$what"; return 0; fi
        sleep 0.2
    done
    say "timed out: $what"
    return 1
}
checkpointed() { grep -q '"event": "checkpoint"' "$work/$1.run/events.jsonl" 2> /dev/null; }
is() { [ "$(state "$1")" = "$2" ]; }
wait_done() {
    wait_for "job $1 has ended after $(restarts "$1") restart(s)" 600 sh -c "! squeue -h -j $1 -t PD,R,CG,RQ | grep -q ."
    is "$1" COMPLETED
}
event() { grep "\"event\": \"$2\"" "$work/$1.run/events.jsonl"; }

say "the same video without a scheduler"
vinfinity generate "${video[@]}" --out "$work/whole.mp4" > /dev/null 2>&1

say "1. one task that starts two ranks; a job of higher priority preempts it"
cheap=$(submit --job-name=preempted --gpus-per-node=2 --cpus-per-task=4 --time=20 examples/slurm/one-node.sbatch \
    "${video[@]}" --out "$work/preempted.mp4")
wait_for "job $cheap has written a checkpoint" 120 checkpointed preempted
urgent=$(submit --job-name=urgent -p urgent --cpus-per-task=4 --gpus-per-node=0 --wrap "sleep 5")
wait_for "job $urgent preempts it: job $cheap is pending again" 120 is "$cheap" PENDING
wait_for "job $urgent has completed" 60 is "$urgent" COMPLETED
wait_done "$cheap"
[ "$(restarts "$cheap")" -ge 1 ]
event preempted resumed >> "$log"

say "2. two tasks under srun; SLURM's warning, then the script requeues itself"
tasks=$(submit --job-name=warned --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=2 --time=20 \
    examples/slurm/nodes.sbatch "${video[@]}" --out "$work/warned.mp4")
wait_for "job $tasks has written a checkpoint" 120 checkpointed warned
scancel --signal=USR1 "$tasks"
wait_for "job $tasks was warned: it is pending again" 120 is "$tasks" PENDING
wait_done "$tasks"
[ "$(restarts "$tasks")" -ge 1 ]
event warned resumed >> "$log"

say "3. an array that shares a batch"
array=$(submit --job-name=array --array=1-2 --cpus-per-task=2 --time=20 examples/slurm/array.sbatch \
    "$PWD/examples/slurm/prompts.txt" --folder "$work/videos" --out "{index:04}.mp4" --frames 8 --steps 4 --device cpu)
wait_for "both jobs of the array $array have completed" 200 \
    sh -c "[ \$(ls $work/videos/*.mp4 2> /dev/null | wc -l) = 2 ]"

python - "$work" <<'PYTHON' | tee -a "$log" >&2
import sys
from pathlib import Path

from vinfinity.media.mp4 import read_metadata
from vinfinity.media.reader import open_reader
from vinfinity.runs.parts import read_manifest

work = Path(sys.argv[1])
whole = read_manifest(work / "whole.run" / "latents")
worst = 0.0
for name in ("preempted", "warned"):
    parts = read_manifest(work / f"{name}.run" / "latents")
    difference = (parts.read(range(24)) - whole.read(range(24))).abs().max().item()
    frames = len([*open_reader(work / f"{name}.mp4")])
    print(f"{name}: {frames} frames, largest difference to the uninterrupted video's latents {difference:.1e}")
    worst = max(worst, difference if frames == 24 else 1.0)
titles = [read_metadata(work / "videos" / f"000{line}.mp4")["title"] for line in (1, 2)]
print(f"array: {titles}")
sys.exit(worst > 1e-4 or titles[0] == titles[1])
PYTHON
say "all checks passed"
