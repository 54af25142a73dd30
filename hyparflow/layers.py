"""Keras layers that Keras does not have."""

from hyparflow.model.experts.mixture_of_experts import MixtureOfExperts

__all__ = ["MixtureOfExperts"]
