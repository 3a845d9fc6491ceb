# What the job scripts share; source it from the repository root. Each setting can be given in the
# environment of sbatch instead.

# shellcheck shell=bash
: "${XPT_VENV:=$PWD/.venv}"                    # made by `make install`
: "${XPT_DS_CONFIG:=ds_configs/zero2.json}"    # ZeRO stage
: "${XPT_MAX_RESTARTS:=100}"                   # how often one job may go back into the queue

if [[ ! -x $XPT_VENV/bin/python ]]; then
    echo "no Python at $XPT_VENV/bin/python: run 'make install' on a file system that the nodes see, or set XPT_VENV" >&2
    exit 2
fi
export PATH="$XPT_VENV/bin:$PATH"
# Without it, srun gives every task one CPU (Slurm 22.05 and later).
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# Run the command on every task of the job; put the job back into the queue where there is more to do.
#
# The time limit is announced to this script only, which passes it on; scancel and preemption reach the
# tasks without help. Either way they write a checkpoint and end. The rest is decided by how they ended:
#
#   0       done
#   2       refused by all ranks, with a message that says what to mend: starting again would not help
#   others  refused by one rank alone (srun then gives the status of those that it had to kill), stopped on
#           a signal (75), killed, or lost with their node: back into the queue, unless the
#           job was cancelled or has been restarted XPT_MAX_RESTARTS times
run_to_the_end() {
    local first step status state attempt
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # As Slurm itself reaches it: the node's name need not be known to the others.
    MASTER_ADDR=$(scontrol --oneliner show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    # This script runs on that node too, so a port that is free here is free there.
    MASTER_PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    export MASTER_ADDR MASTER_PORT
    # The command is the task itself: a shell or torchrun in between would swallow Slurm's signals. A task
    # that ends alone takes the others with it after 20 s, in which they end by themselves if they can.
    srun --wait=20 "$@" &
    step=$!
    trap 'echo "the time limit is near"; kill -USR2 "$step"' USR1 USR2
    trap 'echo "told to end"' TERM
    while kill -0 "$step" 2>/dev/null; do
        wait "$step" || true # returns early when a signal comes
    done
    status=0
    wait "$step" || status=$?
    if ((status == 0 || status == 2)); then
        return "$status"
    fi

    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
    if [[ $state == COMPLETING || $state == CANCELLED ]]; then
        # A job that Slurm preempts without notice looks the same here, and Slurm puts it back itself.
        echo "ended with status $status, as told; unless Slurm starts it again, submit the same command to go on"
        return "$status"
    fi
    if ((${SLURM_RESTART_COUNT:-0} >= XPT_MAX_RESTARTS)); then
        echo "ended with status $status after ${SLURM_RESTART_COUNT:-0} restarts, the most allowed" \
            "(XPT_MAX_RESTARTS); submit the same command to go on" >&2
        return "$status"
    fi
    echo "ended with status $status at $(date +%s.%N): back into the queue (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
    for attempt in {1..20}; do # a controller that is busy or restarts is no reason to lose the run
        scontrol requeue "$SLURM_JOB_ID" && return 0
        echo "scontrol requeue failed (attempt $attempt of 20)" >&2
        sleep 15
    done
    return "$status"
}
