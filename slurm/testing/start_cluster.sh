#!/bin/bash
# Starts a Slurm cluster of this machine alone, for tests.
#
#     slurm/testing/start_cluster.sh FOLDER [CPUS]    # then: export SLURM_CONF=FOLDER/slurm.conf
#     slurm/testing/start_cluster.sh --stop FOLDER
#
# Root only. Installs Debian's packages slurm-wlm, munge and libpmix-dev if there is no slurmctld. Everything else
# stays in FOLDER, and ports are taken that are free; a Slurm that this machine may have is left alone.

set -euo pipefail

stop() {
    local folder=$1 name
    for name in slurmd slurmctld munged; do
        if [ -s "$folder/$name.pid" ]; then
            kill "$(cat "$folder/$name.pid")" 2> /dev/null || true
        fi
    done
}

install() {
    command -v slurmctld > /dev/null && command -v munged > /dev/null && return
    command -v apt-get > /dev/null || { echo "There is no Slurm here, and no apt-get." >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Slurm's PMIx looks for a library's name without a version, which is in the -dev package.
    # Their services are not started: this script does it, with a configuration of its own.
    apt-get install -qq -y --no-install-recommends slurm-wlm munge libpmix-dev > /dev/null
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

configure() {
    local folder=$1 cpus=$2
    local gpus="" gres=""
    # No GPUs, but devices that Slurm can count and deal out as if they were.
    if [ -c /dev/tty3 ]; then
        gpus="Name=gpu File=/dev/tty[0-3]"
        gres="Gres=gpu:4"
    fi
    mkdir -p "$folder/state" "$folder/spool"
    dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
    chmod 600 "$folder/munge.key"
    cat > "$folder/slurm.conf" << END
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
# A job that was requeued waits for as long as the old run may have credentials.
AuthInfo=socket=$folder/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# Containers lack the cgroups that Slurm's defaults need.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
# More CPUs than there are: tests start more ranks than that.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
# Wait for a second only until a job that was requeued may start again.
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
GresTypes=gpu
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$cpus $gres State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    echo "$gpus" > "$folder/gres.conf"
}

start() {
    local folder=$1
    export SLURM_CONF="$folder/slurm.conf"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munge.seed"
    slurmctld
    slurmd
    for _ in $(seq 100); do
        if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    echo "Slurm did not come up:" >&2
    tail -n 20 "$folder"/*.log >&2
    stop "$folder"
    exit 1
}

if [ "${1:-}" = --stop ]; then
    stop "$2"
    exit
fi
[ "$(id -u)" = 0 ] || { echo "Only root can start daemons that run jobs." >&2; exit 1; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
install
configure "$folder" "${2:-4}"
start "$folder"
