"""The room's exceptions: PolicyError is their base, each message one sentence that says what to do next.

    PolicyError (1)
    ├── settings.ConfigError (2)     a file of settings cannot be used
    ├── RegisterError (2)            a terms document or a bundle cannot be used
    └── FactsError (2)               facts contradict each other, or a waiver does not fit what it names

The number is the exit code of the command; verdicts are never exceptions (decision.EXIT_CODES).
"""

from __future__ import annotations


class PolicyError(Exception):
    """The policies room could not do what it was asked to."""

    exit_code: int = 1


class RegisterError(PolicyError):
    """A terms document or a bundle is malformed, missing or not what its digest says."""

    exit_code = 2


class FactsError(PolicyError):
    """The facts given contradict each other, lie in the future, or belong to another document version."""

    exit_code = 2
