"""`tollkeeper policy`: the decision room's own commands, and those that need more than it."""

from policies.cli import policy
from proxy.cli.explain import explain

policy.add_command(explain)

__all__ = ["policy"]
