#!/bin/bash
# A batch job of hyparflow, with everything explained; the other scripts here are short.
#
#     sbatch slurm/template.sh train.py --epochs 3
#
# What stands behind sbatch replaces what stands here: sbatch --nodes=4 slurm/template.sh train.py

#SBATCH --job-name=hyparflow
# Ranks: partitions x replicas. Neighbours belong to one pipeline, so let a node have whole ones.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
# Cores of each rank. One to four are used well by small images, more by large layers.
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
# %j is the job's number. All ranks write here; progress and metrics come from the leader only.
#SBATCH --output=%x-%j.txt

set -euo pipefail

# Activate your environment here, or before sbatch: the job gets the environment that sbatch has.
#   module load ...
#   source .venv/bin/activate

# No rank waits for another for longer than this (seconds); then a table shows where each was.
export HYPARFLOW_TIMEOUT=${HYPARFLOW_TIMEOUT:-600}

# What this node has and lacks, with what to do about it; a problem need not be one of this job's.
hyparflow doctor || true

# srun does not hand on sbatch's --cpus-per-task by itself.
# --mpi=pmix: without it each rank believes it is alone, and is told so (`srun --mpi=list`).
# --kill-on-bad-exit: without it a rank that is killed may leave the others behind.
# --label: each line tells its rank.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=pmix --kill-on-bad-exit=1 --label python "$@"
