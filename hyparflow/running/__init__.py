"""Starts ranks: the launcher of the MPI library that mpi4py loads, with the right flags."""

from hyparflow.running.flags import Request
from hyparflow.running.folder import job_folder
from hyparflow.running.job import Job, run, run_and_show
from hyparflow.running.mpi import find_launcher, library
from hyparflow.running.output import checked_output

__all__ = [
    "Job",
    "Request",
    "checked_output",
    "find_launcher",
    "job_folder",
    "library",
    "run",
    "run_and_show",
]
