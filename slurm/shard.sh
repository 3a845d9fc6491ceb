#!/bin/bash
# Shards from a large archive under Slurm: a job array reads the films, one more job merges them.
#
#   (umask 077; openssl rand -hex 32 > SHARDS.key)      # once: the secret of the pseudonyms
#   job=$(sbatch --parsable --array 1-16 slurm/shard.sh ARCHIVE --out SHARDS [OPTIONS OF xpt-shards build])
#   sbatch --dependency "afterok:$job" slurm/shard.sh ARCHIVE --out SHARDS [THE SAME OPTIONS]
#
# As part of an array it reads one share of the films, otherwise it merges all shares; the result is
# byte for byte that of `xpt-shards build` on one machine. ARCHIVE, SHARDS and the key must be on file
# systems that all nodes see. A job that was killed goes on where it was with the same command. Where a
# share fails, the merge waits for good: scancel it, and submit both again.
#SBATCH --job-name=xpt-shard
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A-%a.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
# shellcheck source=slurm/env.sh
source slurm/env.sh
export OMP_NUM_THREADS=1 # the processes are the parallelism

workers="${SLURM_CPUS_PER_TASK:-1}"
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    # To run a few shares again, say how many there are: XPT_PARTS=16 sbatch --array 3,7 ...
    first="${SLURM_ARRAY_TASK_MIN:-1}" last="${SLURM_ARRAY_TASK_MAX:-1}" parts="${SLURM_ARRAY_TASK_COUNT:-1}"
    if [[ -n ${XPT_PARTS:-} ]]; then
        parts=$XPT_PARTS
    elif ((first != 1 || last != parts)); then
        echo "the array has to be 1-N (got $parts tasks from $first to $last);" \
            "set XPT_PARTS to run a few shares of it again" >&2
        exit 2
    fi
    exec xpt-shards build "$@" --part "$SLURM_ARRAY_TASK_ID/$parts" --workers "$workers"
fi
exec xpt-shards merge "$@" --workers "$workers"
