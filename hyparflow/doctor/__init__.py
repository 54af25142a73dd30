"""Checks what training over ranks needs, and says what to do about what is missing."""

from hyparflow.doctor.examination import examine
from hyparflow.doctor.finding import OK, PROBLEM, WARNING, Finding, as_values, show

__all__ = ["OK", "PROBLEM", "WARNING", "Finding", "as_values", "examine", "show"]
