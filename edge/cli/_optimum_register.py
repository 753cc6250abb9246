"""Installed as optimum/commands/register/edge_deploy.py: optimum-cli imports every file there and asks it for this."""

from edge.cli._optimum import REGISTER_COMMANDS

__all__ = ["REGISTER_COMMANDS"]
