"""Plans: what a layout would cost on a machine, and which layout is best."""

from __future__ import annotations

from hyparflow.planning.cluster import Cluster, Link
from hyparflow.planning.costs import Costs
from hyparflow.planning.plan import Plan

__all__ = ["Cluster", "Costs", "Link", "Plan"]
