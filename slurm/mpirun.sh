#!/bin/bash
# With the launcher of the MPI library instead of srun: where Slurm has no PMIx, or another version
# than the library. The launcher asks Slurm where the ranks go. It must be the mpirun of the library
# that mpi4py loads; `hyparflow doctor` tells whether it is.
#
#     sbatch slurm/mpirun.sh examples/cifar10_resnet.py --strategy data

#SBATCH --job-name=mpirun
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.txt

set -euo pipefail
hyparflow run -n "$SLURM_NTASKS" "$@"
