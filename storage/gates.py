"""Quality gates: the profile of a table version beside the thresholds of train.toml, and the decision that they make.

A decision keeps the measures it was made on, so that a training that starts again does not measure again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from policies.decision import Decision, Reason
from policies.gates import Gates, gated, judge, subject
from policies.settings import read_toml
from policies.waivers import Waiver
from storage.errors import mapped
from storage.profile import Profile, profile
from storage.table import Table


class _TrainFile(BaseModel):
    """A train.toml of which only [gates] is read."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, frozen=True)

    gates: Gates = Gates()


def read_gates(path: Path) -> Gates:
    """The [gates] section of a train.toml. Raises ConfigError."""
    return read_toml(path, _TrainFile).gates


def missed(gates: Gates, found: Profile) -> tuple[Reason, ...]:
    """What a profile comes to under the thresholds."""
    return judge(gates, found.measures)


def gate(
    table: Table, decision: Decision, gates: Gates, *, waivers: Sequence[Waiver] = (), today: date | None = None
) -> Decision:
    """The decision on a use of this table version with what its quality gates say, saved with the table.

    Raises FactsError for a waiver of other thresholds or data, ProfileMissing, PromptsUnreadable.
    """
    if not gates.thresholds:
        return decision
    data = _digest(table, gates)
    earlier = [one.facts["gates"] for one in table.decisions() if "gates" in one.facts]
    known = next((one["measures"] for one in earlier if one["digest"] == subject(gates, data)), None)
    measures = profile(table, against=gates.production).measures if known is None else known
    found = gated(decision, gates, measures, data=data, waivers=waivers, today=today)
    table.save_decision(found)
    return found


def _digest(table: Table, gates: Gates) -> str:
    """sha256 over the names of the data files, which hold their own, and over production's prompts."""
    names = sorted(file.sha256 for file in table.files())
    if gates.production is not None:
        with mapped(gates.production):
            names.append(hashlib.sha256(gates.production.read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
