"""What someone wants to do with a student: the facts of use.toml.

Every fact but the action may be left out; a rule that needs one which is missing gives review, never allow.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from policies.countries import known_country
from policies.identity import Signal
from policies.settings import Settings

Action = Literal["collect", "train", "publish_dataset", "distribute_student", "host_student", "internal_use"]
ACTIONS: tuple[Action, ...] = (
    "collect",
    "train",
    "publish_dataset",
    "distribute_student",
    "host_student",
    "internal_use",
)
StudentKind = Literal["general_llm", "narrow_llm", "classifier", "embedding"]
Business = Literal["model_as_a_service", "ai_work_assistant", "other"]

Country = Annotated[str, AfterValidator(known_country)]


class Student(Settings):
    """The model that is trained. `init_from` is a model id or "scratch"."""

    name: str | None = Field(default=None, min_length=1)
    licence: str | None = Field(default=None, min_length=1)
    init_from: str | None = Field(default=None, min_length=1)
    kind: StudentKind | None = None
    distributed: bool | None = None
    hosted: bool | None = None
    intent_similar: bool | None = None


class Organisation(Settings):
    """Who trains the student. Revenue is of the whole group, in USD a year.

    `monthly_active_users_on` holds the figure on a date that a licence names; without it `monthly_active_users` is
    taken. `registrations` and `separate_licences` name documents under which the licensor was registered with, or
    gave a separate agreement.
    """

    domicile: Country | None = None
    deploys_in: tuple[Country, ...] | None = None
    commercial: bool | None = None
    annual_revenue_usd: float | None = Field(default=None, ge=0)
    monthly_active_users: int | None = Field(default=None, ge=0)
    monthly_active_users_on: dict[date, NonNegativeInt] = Field(default_factory=dict)
    business: tuple[Business, ...] | None = None
    registrations: tuple[str, ...] | None = None
    separate_licences: tuple[str, ...] | None = None


class Data(Settings):
    """What of the teacher's outputs the student is trained on."""

    signal: Signal | None = None


class Use(Settings):
    """One use of one student by one organisation."""

    action: Action
    student: Student = Field(default_factory=Student)
    organisation: Organisation = Field(default_factory=Organisation)
    data: Data = Field(default_factory=Data)

    @classmethod
    def collect_only(cls) -> Use:
        """The use that a run without one is judged by: collecting, and nothing said of a student."""
        return cls(action="collect")

    def doing(self, action: Action) -> Use:
        """The same student and organisation, judged for another action."""
        return self.model_copy(update={"action": action})

    @model_validator(mode="after")
    def _facts_agree(self) -> Use:
        student = self.student
        for action, field, value in _CONTRADICTIONS:
            if self.action == action and getattr(student, field) is value:
                said = "true" if value else "false"
                raise ValueError(f"[student] {field} = {said} contradicts action = {action!r}: change one of them")
        return self


_CONTRADICTIONS: tuple[tuple[Action, str, bool], ...] = (
    ("distribute_student", "distributed", False),
    ("host_student", "hosted", False),
    ("internal_use", "distributed", True),
    ("internal_use", "hosted", True),
)
