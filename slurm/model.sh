#!/bin/bash
# Model parallelism on one node: each rank trains a part of one replica. For deep models and small
# batches. `hyparflow plan` tells how many parts pay.
#
#     sbatch slurm/model.sh examples/cifar10_resnet.py --strategy model --batch-size 32

#SBATCH --job-name=model
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.txt

set -euo pipefail
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=pmix --kill-on-bad-exit=1 python "$@"
