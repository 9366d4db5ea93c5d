"""What the obligations of a document mean: their words, when they are due, what they add to the lattice.

Which uses violate them is in violations.py; most types are plain duties, owed when the trigger fires.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

from policies.documents import Document, Duty
from policies.facts import Answer, Case, all_of, any_of
from policies.merge import Claims, Limit
from policies.use import Action

SHIPPING: frozenset[Action] = frozenset(("distribute_student", "host_student"))
"""The actions that let others have the student: hosting one is making it available."""

_FIRES: dict[str, frozenset[Action]] = {
    "on_collect": frozenset({"collect"}),
    "on_train": frozenset({"train", "distribute_student", "host_student", "internal_use"}),
    "on_publish_dataset": frozenset({"publish_dataset"}),
    "on_distribute_student": SHIPPING,
    "on_distribute_teacher": frozenset(),
    "on_commercial_use": SHIPPING | {"publish_dataset"},
}

TEXTS: dict[str, str] = {
    "attribution_citation": "Cite the sources that come with returned content",
    "attribution_display": "Show the line: {text}",
    "attribution_statement": "State with the student: {text}",
    "compliance_evidence_on_request": "Keep evidence of compliance ready; it can be asked for",
    "delete_on_notice": "Delete outputs when the host gives notice",
    "disclose_ai_generated": "Disclose that outputs are AI-generated",
    "dynamic_license": "The licensor may change the text; comply or stop",
    "dynamic_policy": "The use policy can change; follow the newest",
    "effective_is_host_and_model": "The model's own terms bind beside the host's",
    "explanatory_documentation": "Give documentation with the student: {text}",
    "flow_down_terms": "Bind those who use the service through you to these terms",
    "guardrail_termination": "Bypassing a guardrail without a substitute ends the licence",
    "label_ai_generated": "Label published outputs as AI-generated",
    "latest_version_effort": "Make reasonable efforts to use the newest version",
    "license_copy": "Give a copy of the licence ({licence})",
    "litigation_termination": "Suing over the model ends the licence",
    "mark_modified": "Mark what was modified, prominently",
    "mau_threshold": "No licence above {value} monthly active users{on}",
    "name_prefix": "Begin the student's name with {value!r}",
    "no_assist_third_party": "Do not help others to do what the terms bar",
    "no_benchmarking": "No benchmarking of the service for competitors",
    "no_competing_model": "Do not train a model that competes with the provider",
    "no_competing_product": "Do not build a product that competes with the host",
    "no_distribution": "Do not distribute or sell the student",
    "no_distribution_by_commercial_entity": "A commercial organisation may not distribute outputs",
    "no_extraction": "No model extraction",
    "no_resale": "Do not resell the service",
    "no_similar_product": "Do not build a similar product",
    "no_systematic_collection": "Do not collect outputs systematically into training sets",
    "no_trademark_use": "Do not use the licensor's marks{mark}",
    "notice_file": "Give the notice file: {text}",
    "notice_origin": "Keep the notices of origin",
    "notice_retain": "Keep the notices that came with the model",
    "output_owned_by_licensor": "The licensor owns the outputs",
    "pin_provider": "Record the provider that served each row",
    "preserve_provenance_marks": "Keep provenance marks that identify AI output",
    "registration": "Register with {provider} before commercial use",
    "research_purposes_only": "Train and use the student for research purposes only",
    "restricted_models": "Some routed models carry restrictions of their own",
    "revenue_threshold": "Commercial rights end above {value} USD of annual revenue",
    "separate_approval": "Ask {provider} for approval where the business and revenue named apply",
    "separate_license": "Take a separate licence from {provider} where the business and revenue named apply",
    "share_alike": "Put the student under this same licence ({licence})",
    "territory_excluded": "Not for use in {territory}",
    "territory_excluded_domicile": "Not for organisations domiciled in {territory}",
    "territory_limited": "Only where the service is offered",
    "third_party_eula": "The model maker's own terms bind beside the host's",
    "use_policy_passthrough": "Follow the use policy{policy}",
    "use_restrictions_enforceable": "Make the use restrictions{policy} an enforceable part of the student's licence",
    "verify_accuracy": "Verify published outputs",
}


def describe(document: Document, duty: Duty) -> str:
    """The obligation as a person reads it."""
    text = TEXTS[duty.type]
    value = f"{duty.value:,.0f}" if isinstance(duty.value, float) else duty.value
    filled = text.format(
        text=duty.text or duty.applies or "as the text asks",
        value=value,
        on=f" on {duty.measured_on}" if duty.measured_on else "",
        mark=f" ({duty.mark})" if duty.mark else "",
        policy=f" ({duty.policy})" if duty.policy else "",
        territory=", ".join(duty.territory or ()),
        licence=document.title,
        provider=document.provider,
    )
    thresholds = [f"above {duty.users_over:,} monthly users" if duty.users_over else ""]
    if duty.monthly_revenue_over_usd:
        thresholds.append(f"{duty.monthly_revenue_over_usd:,.0f} USD of revenue a month")
    if duty.annual_revenue_over_usd:
        thresholds.append(f"{duty.annual_revenue_over_usd:,.0f} USD of revenue a year")
    over = " or ".join(part for part in thresholds if part)
    business = " or ".join(name.replace("_", " ") for name in duty.business or ())
    limits = "; ".join(part for part in (business, over) if part)
    return f"{filled} ({limits})" if limits else filled


def fires(case: Case, duty: Duty) -> bool:
    """Whether the action is one that the duty's trigger speaks of."""
    action = case.use.action
    return action not in duty.exempt and (duty.trigger == "always" or action in _FIRES[duty.trigger])


def due(case: Case, duty: Duty) -> bool:
    """Whether the duty is owed for the action; a threshold that is surely not reached keeps it from being owed."""
    if not fires(case, duty) or duty.type == "mau_threshold":
        return False
    if duty.trigger == "on_commercial_use" and case.commerce().holds is False:
        return False
    return _reached(case, duty).holds is not False


def _reached(case: Case, duty: Duty) -> Answer:
    """Whether the thresholds of a duty to show or to ask are passed; a licence to be taken is owed below its
    threshold too, as a thing to watch."""
    if duty.type not in ("attribution_display", "separate_approval"):
        return Answer(True)
    return passed(case, duty)


def passed(case: Case, duty: Duty) -> Answer:
    """Whether the organisation is above one of a duty's thresholds and in one of its businesses; true without any."""
    limits = list(_thresholds(case, duty))
    over = any_of(limits) if limits else Answer(True)
    return over if duty.business is None else all_of((over, case.in_business(duty.business)))


def _thresholds(case: Case, duty: Duty) -> Iterator[Answer]:
    if duty.users_over is not None:
        yield case.users_over(duty.users_over, duty.measured_on)
    if duty.monthly_revenue_over_usd is not None:
        yield case.over("organisation.annual_revenue_usd", 12 * duty.monthly_revenue_over_usd)
    if duty.annual_revenue_over_usd is not None:
        yield case.over("organisation.annual_revenue_usd", duty.annual_revenue_over_usd)


def claims_of(case: Case, duty: Duty) -> Claims:
    """What the duty asks of a student that other teachers' duties may clash with; nothing where it does not fire."""
    claim = _CLAIMS.get(duty.type)
    return Claims() if claim is None or not fires(case, duty) else claim(case.document, duty)


def _attribution(document: Document, duty: Duty) -> Claims:
    return Claims(attributions=frozenset({describe(document, duty)}))


def _notice(document: Document, duty: Duty) -> Claims:
    return Claims(notices=frozenset({f"{document.name}: {describe(document, duty)}"}))


def _limit(metric: str, duty: Duty) -> Limit:
    return Limit(metric, duty.measured_on or date.max, float(duty.value or 0))


_CLAIMS: dict[str, Callable[[Document, Duty], Claims]] = {
    "attribution_display": _attribution,
    "attribution_statement": _attribution,
    "license_copy": lambda document, duty: Claims(licence_copies=frozenset({document.name})),
    "mau_threshold": lambda document, duty: Claims(limits=frozenset({_limit("monthly_active_users", duty)})),
    "name_prefix": lambda document, duty: Claims(name_prefixes=frozenset({str(duty.value)})),
    "no_trademark_use": lambda document, duty: Claims(marks=frozenset({duty.mark} if duty.mark else ())),
    "notice_file": _notice,
    "notice_origin": _notice,
    "notice_retain": _notice,
    "revenue_threshold": lambda document, duty: Claims(limits=frozenset({_limit("annual_revenue_usd", duty)})),
    "share_alike": lambda document, duty: Claims(share_alike=frozenset({document.licence})),
    "territory_excluded": lambda document, duty: Claims(territories=frozenset(duty.territory or ())),
    "use_restrictions_enforceable": lambda document, duty: Claims(use_restrictions=frozenset({document.name})),
}
