"""Starts ranks: the launcher of the MPI library that mpi4py loads, with the right flags."""

from hyparflow.running.flags import Request
from hyparflow.running.job import Job, run, run_and_show
from hyparflow.running.mpi import find_launcher, library

__all__ = ["Job", "Request", "find_launcher", "library", "run", "run_and_show"]
