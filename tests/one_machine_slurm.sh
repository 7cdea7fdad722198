#!/usr/bin/env bash
# Usage: one_machine_slurm.sh start|stop FOLDER
#
# A SLURM whose only node is this machine, reachable on loopback only, with everything it writes in FOLDER. As root, with
# Debian's packages slurm-wlm and munge. After start, programs find it with SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
action=${1:?start or stop}
dir=$(realpath -m "${2:?a folder}")
export SLURM_CONF=$dir/slurm.conf
export PATH=$PATH:/usr/sbin

# End the daemons that were started from this folder, and wait until they are gone.
stop() {
  local daemon pid
  if [ -e "$dir/slurmctld.pid" ]; then timeout 5 scancel --partition=all --quiet || true; fi
  for daemon in slurmd slurmctld munged; do
    pid=$(cat "$dir/$daemon.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
  done
}

give_up() {
  echo "$1; what the daemons said:" >&2
  tail -n 5 "$dir"/*.log >&2 || true
  stop
  exit 1
}

free_ports() {
  python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

configure() {
  local controller_port node_port
  read -r controller_port node_port < <(free_ports)
  # More cores than a small machine has, and believed: what is tested is that jobs run, not how fast.
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName=here NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=all Nodes=here Default=YES MaxTime=60 State=UP
CONF
}

start() {
  mkdir -p "$dir"/{state,spool}
  chmod 755 "$dir"
  configure
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" || give_up "munged does not start"
  slurmctld -f "$SLURM_CONF" || give_up "slurmctld does not start"
  slurmd -f "$SLURM_CONF" -N here || give_up "slurmd does not start"
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; then return; fi
    sleep 0.2
  done
  give_up "the node does not become idle"
}

case $action in
  start) start ;;
  stop) stop ;;
  *) sed -n '2,5s/^# \?//p' "$0"; exit 2 ;;
esac
