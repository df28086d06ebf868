#!/usr/bin/env bash
# A real SLURM of one node on this machine, on loopback, for tests and for trying scripts out: no systemd, cgroups or
# accounting. Configuration, key, sockets, state and logs are in one directory. It needs root, since slurmd starts jobs.
#   scripts/local_slurm.sh install              Debian's and Ubuntu's packages
#   scripts/local_slurm.sh start [DIRECTORY]    prints the line `export SLURM_CONF=…`: eval it, then sbatch as usual;
#                                               exit code 3 where there is no root, or no SLURM
#   scripts/local_slurm.sh status [DIRECTORY]   the node and its jobs
#   scripts/local_slurm.sh stop [DIRECTORY]     kills all jobs and ends the daemons
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
PACKAGES=(slurmctld slurmd slurm-client munge)
HERE=$(realpath -m "${2:-${TMPDIR:-/tmp}/local_slurm}")
export SLURM_CONF=$HERE/slurm.conf

fail() {
    echo "local_slurm: $*" >&2
    exit "${code:-1}"
}

running() { # true if the process of $1.pid still runs, and no other has its number
    local pid
    pid=$(cat "$HERE/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]]
}

await() { # up to 30 s
    for _ in {1..150}; do "$@" && return || sleep 0.2; done
    return 1
}

ready() {
    [[ $(sinfo --noheader --format=%t 2>/dev/null) =~ ^(idle|mix|alloc)$ ]]
}

free_port() { # a port on which nothing answers
    local port
    while port=$((20000 + RANDOM % 10000)); (: </dev/tcp/127.0.0.1/$port) 2>/dev/null; do :; done
    echo $port
}

configure() {
    cat >"$SLURM_CONF" <<-END
	ClusterName=local
	SlurmctldHost=$(hostname -s)(127.0.0.1)
	SlurmctldPort=$(free_port)
	SlurmdPort=$(free_port)
	SlurmUser=root
	AuthInfo=socket=$HERE/munge.socket
	StateSaveLocation=$HERE/state
	SlurmdSpoolDir=$HERE/spool
	SlurmctldPidFile=$HERE/slurmctld.pid
	SlurmdPidFile=$HERE/slurmd.pid
	SlurmctldLogFile=$HERE/slurmctld.log
	SlurmdLogFile=$HERE/slurmd.log
	CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
	MpiDefault=none
	ProctrackType=proctrack/linuxproc
	TaskPlugin=task/none
	SelectType=select/cons_tres
	SelectTypeParameters=CR_CPU
	SlurmdParameters=config_overrides
	ReturnToService=2
	# seconds for which scontrol shows a finished job
	MinJobAge=3600
	# more processors than the machine has, so that small jobs run in parallel; ranks resolve the node's name
	NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8
	PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE
	END
}

start() {
    ((${#HERE} < 90)) || fail "$HERE is too long a path for a socket: name a shorter directory"
    local program fd code=3 # unavailable here, which is not a failure
    [[ $EUID == 0 ]] || fail "only root can start SLURM: slurmd starts jobs in the name of those who submit them"
    for program in munged slurmctld slurmd sbatch; do
        command -v $program >/dev/null || fail "$program is not installed: sudo scripts/local_slurm.sh install"
    done
    code=1
    mkdir -p "$HERE/state" "$HERE/spool"
    [[ -s $SLURM_CONF ]] || configure
    [[ -s $HERE/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >"$HERE/munge.key")
    for fd in /proc/$BASHPID/fd/*; do # daemons would keep inherited files, e.g. a lock of the caller; 255 is this file
        ((${fd##*/} <= 2 || ${fd##*/} == 255)) || eval "exec ${fd##*/}>&-"
    done
    running munged || munged --force --num-threads=2 --key-file="$HERE/munge.key" --socket="$HERE/munge.socket" \
        --pid-file="$HERE/munged.pid" --log-file="$HERE/munged.log" --seed-file="$HERE/munged.seed"
    running slurmctld || slurmctld
    running slurmd || slurmd
    await ready || fail "the node is not ready after 30 s: see $HERE/*.log"
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    local jobs name
    if running slurmctld && jobs=$(squeue --noheader --format=%i) && [[ $jobs ]]; then
        # SIGKILL, since a daemon is slow to end at SIGTERM; one that has ended already is ignored
        scancel --quiet --full --signal=KILL $jobs 2>/dev/null || true
        scancel --quiet $jobs 2>/dev/null || true
        await eval '[[ -z $(squeue --noheader) ]]' || fail "jobs $jobs do not end: see $HERE/slurmd.log"
    fi
    for name in slurmd slurmctld munged; do
        if running $name; then
            kill "$(<"$HERE/$name.pid")"
            await eval "! running $name" || fail "$name does not end: see $HERE/$name.log"
        fi
    done
}

case ${1:-} in
install)
    [[ $EUID == 0 ]] || fail "only root can install ${PACKAGES[*]}"
    command -v apt-get >/dev/null || fail "there is no apt-get: install SLURM and munge as your system does"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" ;;
start) start ;;
stop) stop ;;
status)
    running slurmctld || fail "no SLURM runs in $HERE"
    sinfo && squeue ;;
*) fail "say install, start, status or stop, and a directory if it is not $HERE" ;;
esac
