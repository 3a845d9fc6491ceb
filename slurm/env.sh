# Settings shared by the job scripts; source it from the repository root. Each can be set in the
# environment of sbatch instead.

# shellcheck shell=bash
: "${XPT_VENV:=$PWD/.venv}"                    # made by `make install`
: "${XPT_DS_CONFIG:=ds_configs/zero2.json}"    # ZeRO stage

if [[ ! -x $XPT_VENV/bin/python ]]; then
    echo "no Python at $XPT_VENV/bin/python: run 'make install' on a file system that the nodes see, or set XPT_VENV" >&2
    exit 2
fi
export PATH="$XPT_VENV/bin:$PATH"
# Without it, srun gives every task one CPU (Slurm 22.05 and later).
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
