#!/bin/bash
# Data parallelism on one node: each rank trains a replica on its part of the batch.
#
#     sbatch slurm/data.sh examples/cifar10_resnet.py --strategy data --batch-size 256

#SBATCH --job-name=data
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.txt

set -euo pipefail
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=pmix --kill-on-bad-exit=1 python "$@"
