#!/bin/bash
# A training longer than the queue's limit: some time before the end the job puts itself into the
# queue again, and goes on from what Keras's callback BackupAndRestore has kept. train.py needs
#
#     hf.fit(..., callbacks=[keras.callbacks.BackupAndRestore("backup")])
#
# which keeps one state per epoch (save_freq=100: one per 100 batches).
#
#     sbatch slurm/requeue.sh train.py
#     scancel --batch --signal=USR1 JOB       # let it make place now, and go on later

#SBATCH --job-name=requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
# Three minutes before the time is over, and to this script only (B).
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
# Else the second run would begin the file anew.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt

set -euo pipefail

queue_again() {
    trap '' USR1 TERM  # to queue a job again sends both
    echo "Job $SLURM_JOB_ID makes place, and goes on later."
    scontrol requeue "$SLURM_JOB_ID"  # ends this script, too
    sleep infinity
}
trap queue_again USR1 TERM

# In the background, because a shell hears no signals while a command in the foreground runs.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --mpi=pmix --kill-on-bad-exit=1 python "$@" &
wait $!
