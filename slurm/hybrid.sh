#!/bin/bash
# Several nodes: a pipeline on each, and replicas among them. Partitions send each other activations
# many times in a step, replicas sum their gradients once: so the fast connection within a node is
# for the pipeline. Ranks are numbered along the pipelines, and --distribution=block:block (what
# Slurm does by itself, unless the site says otherwise) puts neighbours on one node.
#
#     sbatch slurm/hybrid.sh train.py        # with hf.fit(..., num_partitions=2)

#SBATCH --job-name=hybrid
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.txt

set -euo pipefail
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --distribution=block:block --mpi=pmix \
    --kill-on-bad-exit=1 python "$@"
