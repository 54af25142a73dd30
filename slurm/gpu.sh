#!/bin/bash
# GPUs: a rank for each. hyparflow gives each rank of a node one of those that the job may use, by
# its number among them, and lets TensorFlow take memory as it needs it. So all ranks of a node see
# all its GPUs here; with --gpus-per-task=1, where Slurm deals them out itself, it works as well.
#
#     sbatch slurm/gpu.sh examples/cifar10_resnet.py --strategy data --batch-size 1024

#SBATCH --job-name=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.txt

set -euo pipefail
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=pmix --kill-on-bad-exit=1 python "$@"
