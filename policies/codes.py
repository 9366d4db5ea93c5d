"""Every reason code with what it means and the usual ways out; documents may add ways out of their own."""

from __future__ import annotations

CODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "UNKNOWN_TERMS": (
        "No document of the register is known to bind, or one that rows name is not in it: unknown means no",
        ("name the teacher by its full id, revision and access path", "add the terms document to the register"),
    ),
    "IDENTITY_INCOMPLETE": (
        "Several regimes bear this name and the facts given do not say which one binds",
        ("name the revision: MODEL@REVISION",),
    ),
    "SERVED_PROVIDER_MISSING": (
        "An aggregator routed the request, and which provider served it is not recorded",
        ("pin the provider and record it: MODEL#openrouter/PROVIDER",),
    ),
    "CONSUMER_ENDPOINT": (
        "A consumer product is never collected from",
        ("use the maker's API, a host, or open weights",),
    ),
    "SILENT_PERMISSIVE": ("The text says nothing of outputs and the licence is permissive", ()),
    "EXPRESS_PERMIT": ("The text expressly permits it", ()),
    "OUTPUT_TRAIN_BAN": (
        "Outputs may not train other models",
        ("ask the licensor for a written permission", "leave this teacher's rows out"),
    ),
    "OUTPUT_TRAIN_BAN_ANY_MODEL": (
        "Outputs may train no model at all, competing or not",
        ("ask the licensor for a written permission", "leave this teacher's rows out"),
    ),
    "COMPETING_MODEL": (
        "Outputs may not train a model that competes with the licensor",
        ("ask the licensor for a written permission", "leave this teacher's rows out"),
    ),
    "SAME_FAMILY_ONLY": (
        "Outputs may improve only models of the same family",
        ("start the student from weights of that family", "leave this teacher's rows out"),
    ),
    "NONCOMMERCIAL": (
        "Only for purposes that are not commercial",
        ("ask for a commercial licence", "leave this teacher's rows out"),
    ),
    "RESEARCH_ONLY_OUTPUTS": (
        "Outputs stay bound to research purposes",
        ("ask for a commercial licence", "leave this teacher's rows out"),
    ),
    "COLLECTION_BAN": ("Outputs may not be collected", ("use another access path or another teacher",)),
    "EXTRACTION_CLAUSE": (
        "A clause on model extraction reaches this signal",
        ("collect text only", "ask the licensor in writing"),
    ),
    "STUDENT_IS_DERIVATIVE": (
        "The student becomes a derivative of the teacher under its licence",
        (
            "carry the licence's duties with the student",
            "use a teacher whose licence lays no claim on students",
        ),
    ),
    "STUDENT_LICENCE_CONFLICT": (
        "The student's licence cannot carry what the terms demand",
        (
            "give the student a licence of its own (LicenseRef-…) that carries the terms' restrictions",
            "keep the student inside: action = internal_use",
            "use a teacher whose licence lays no claim on students",
        ),
    ),
    "NAME_PREFIX_MISSING": ("The student's name must begin with a given word", ("rename the student",)),
    "NAME_PREFIX_UNSATISFIABLE": (
        "No name satisfies all the naming duties together",
        ("leave out the rows of one of these teachers",),
    ),
    "MARK_FORBIDDEN_IN_NAME": ("The student's name bears a mark that it may not", ("rename the student",)),
    "ATTRIBUTION_MISSING": ("A line that must be shown with the student is not there", ("write it where it is owed",)),
    "NOTICE_MISSING": ("A notice or a licence copy that must go with the student is not there", ("add the file",)),
    "MAU_GATE": (
        "More monthly active users than the licence covers",
        ("ask the licensor for a licence and name it in organisation.separate_licences",),
    ),
    "REVENUE_GATE": (
        "More revenue than the licence covers",
        ("ask the licensor for a licence and name it in organisation.separate_licences",),
    ),
    "TERRITORY": ("A territory that the licence excludes", ("leave this teacher's rows out",)),
    "INTERNAL_EXEMPTION_LOST": (
        "What exempts internal use ends where outputs or capabilities reach others",
        ("keep the student inside: action = internal_use",),
    ),
    "DATASET_PUBLICATION": ("The outputs may not be published as a data set", ("do not publish the table",)),
    "TERMS_CHANGED_SINCE_COLLECTION": (
        "Another version was in force when the rows were made; both were judged, the stricter wins",
        (),
    ),
    "RULE_STALE": (
        "A newer version is known and unread, or the reading is past its review",
        ("read the version in force and record it in the register",),
    ),
    "RULE_UNVERIFIED": (
        "The text was not read in a stored copy",
        ("read the text whole and record it in the register", "record an accepted risk (waiver)"),
    ),
    "MISSING_FACT": ("A fact that decides is not given", ()),
    "GATE_MISSED": (
        "The labels miss a threshold of [gates]",
        (
            "look at the rows that `potstill profile` names; take them down or collect them again",
            "accept the risk: a waiver of gates@train with the digest that the refusal names",
        ),
    ),
    "GATE_UNKNOWN": (
        "A threshold of [gates] asks for a measure that the table does not have",
        ("give prompts the references, domains or labels that it needs", "take the threshold out of [gates]"),
    ),
    "WAIVER_APPLIED": ("A waiver settles this rule", ()),
    "WAIVER_EXPIRED": ("A waiver has run out", ("renew the waiver",)),
    "WAIVER_CLASS_FORBIDDEN": (
        "An accepted risk cannot lift an express ban",
        ("only the licensor's written permission can (kind = external_permission)",),
    ),
}


def ways_out(code: str) -> tuple[str, ...]:
    """The usual ways out of a reason with this code."""
    return CODES[code][1]
