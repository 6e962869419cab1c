#!/bin/bash
# Pre-training on several nodes under Slurm, a process a GPU. What follows the file's name goes to `dexcore pretrain`:
#
#     sbatch --nodes 4 examples/slurm.sh --preset paper --data.store /shared/store --out /shared/runs/mvu
#
# The environment that has dexcore is active when it is submitted, and --out is a folder that all nodes see. Five minutes
# before the time limit, or with `scancel --signal=USR1 JOB`, the run writes a checkpoint and the job is queued again; it
# goes on at the exact sample, as after a node that failed.
#SBATCH --job-name=dexcore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over by itself
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# shellcheck disable=SC2016 # what a task is stands in its own environment
task='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
exec dexcore pretrain --resume --data.workers $((SLURM_CPUS_PER_TASK > 2 ? SLURM_CPUS_PER_TASK - 2 : 0)) "$@"'

code=0
srun --kill-on-bad-exit=1 bash -c "$task" dexcore "$@" || code=$?
if test "$code" = 75; then # stopped by a signal, with a checkpoint
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
