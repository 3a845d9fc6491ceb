#!/bin/bash
# Pretraining under Slurm, one task per GPU:
#
#   export XPT_DATA=/path/to/shards
#   sbatch --nodes 8 --ntasks-per-node 8 --gpus-per-node 8 slurm/pretrain.sh --train.micro_batch 16 [FLAGS OF xpt-train]
#
# It runs the same program as `deepspeed xpt/train.py`; ranks come from Slurm's variables. Near the time
# limit, when preempted and when a rank dies, the job goes back into the queue and on from its last
# checkpoint; scancel ends it with a checkpoint. Submitting the same command again goes on from there.
#SBATCH --job-name=xpt-pretrain
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
# shellcheck source=slurm/env.sh
source slurm/env.sh

run_to_the_end python xpt/train.py --ds_config "$XPT_DS_CONFIG" "$@"
