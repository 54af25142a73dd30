"""Lets tools that expect a setup.py find one; everything it needs is in pyproject.toml."""

from setuptools import setup

setup()
