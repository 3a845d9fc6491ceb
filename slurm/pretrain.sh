#!/bin/bash
# Pretraining under Slurm, one task per GPU:
#
#   export XPT_DATA=/path/to/shards
#   sbatch --nodes 8 --ntasks-per-node 8 --gpus-per-node 8 slurm/pretrain.sh [FLAGS OF xpt-train]
#
# It runs the same program as `deepspeed xpt/train.py`; ranks come from Slurm's variables. Submitting
# the same command again goes on from the last checkpoint.
#SBATCH --job-name=xpt-pretrain
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$PWD}"
# shellcheck source=slurm/env.sh
source slurm/env.sh

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR

# Python itself is the task: a shell or torchrun in between would swallow Slurm's signals.
exec srun --kill-on-bad-exit=1 python xpt/train.py --ds_config "$XPT_DS_CONFIG" "$@"
