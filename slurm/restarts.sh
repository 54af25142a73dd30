#!/bin/bash
# A long training that goes on by itself: after a fault (a rank was killed, hangs, a host is lost) it
# starts again at once, on the nodes of this job; before the queue's limit it saves, and the job puts
# itself into the queue again. train.py keeps its state and goes on from it, and ends with exit
# status 85 when it has saved because of SIGUSR1.
#
#     sbatch slurm/restarts.sh train.py
#     scancel --batch --signal=USR1 JOB       # let it make place now, and go on later

#SBATCH --job-name=restarts
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
# Two minutes before the time is over, and to this script only (B).
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# Else the second run would begin the file anew.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt

set -uo pipefail

# In the background, because a shell hears no signals while a command in the foreground runs.
hyparflow run -n "$SLURM_NTASKS" --restarts 5 "$@" &
run=$!
trap 'told=yes; kill -USR1 "$run"' USR1
trap 'told=yes; kill -TERM "$run"' TERM
while told=; wait "$run"; code=$?; [ -n "$told" ]; do :; done  # a signal ends `wait`, too

if [ "$code" -eq 85 ]; then
    trap '' USR1 TERM  # to queue a job again sends both
    echo "Job $SLURM_JOB_ID has saved, and goes on later."
    scontrol requeue "$SLURM_JOB_ID"  # ends this script, too
    sleep infinity
fi
exit "$code"
