"""The SQL of the views and macros that every query sees, and the three-line meaning of each.

Positions are taken apart by unnesting and slicing; a lambda over the whole list would copy it for every position.
"""

from collections.abc import Collection

VIEWS = {
    "soft_labels": "one line per teacher sequence: the columns of the table as they are stored",
    "tokens": "one line per target: position, token_id, logprob, rank, entropy, tail_mass, and its candidates as lists",
    "candidates": "one line per stored candidate of a target: position, rank, id, logprob, probability",
    "runs": "one line per run: config, counts, cost, how far it came, how it ended",
    "rejects": "one line per paid response that could not become a row: reason, detail, raw bytes",
    "decisions": "one line per policy decision: digest, action, verdict, bundle, decided_at, record (JSON)",
}

MACROS = {
    "entropy": """entropy(logprobs, log_tail) AS
        list_sum(list_transform(list_append(logprobs, log_tail),
                                lambda l: CASE WHEN l > '-inf'::FLOAT THEN -exp(l::DOUBLE) * l ELSE 0 END))""",
    "perplexity": "perplexity(logprob) AS exp(-avg(logprob::DOUBLE))",
    "top_mass": "top_mass(logprobs, n) AS list_sum(list_transform(logprobs[1:n], lambda l: exp(l::DOUBLE)))",
}
"""entropy: of one target in nats, its tail as one bucket. perplexity: an aggregate over realised log-probabilities, one
per line. top_mass: the probability that the n best candidates of one target hold."""

TOKENS = """
CREATE VIEW tokens AS
SELECT * EXCLUDE (raw_logprob, log_tail, every_id, every_logprob),
       CASE WHEN isnan(raw_logprob) THEN NULL ELSE raw_logprob END AS logprob,
       exp(log_tail::DOUBLE) AS tail_mass,
       log_tail,
       every_id[position * k + 1 : (position + 1) * k] AS top_ids,
       every_logprob[position * k + 1 : (position + 1) * k] AS top_logprobs,
       CASE WHEN k > 0 THEN entropy(every_logprob[position * k + 1 : (position + 1) * k], log_tail) END AS entropy
FROM (
    SELECT key, audit_group, mode, run_id, prompt_id, sample_index, collected_at, teacher.model AS model, k,
           unnest(range(len(token_ids))) AS position,
           unnest(token_ids) AS token_id,
           unnest(token_ranks) AS rank,
           unnest(token_logprobs) AS raw_logprob,
           unnest(log_tail) AS log_tail,
           top_ids AS every_id,
           top_logprobs AS every_logprob
    FROM soft_labels
)"""

CANDIDATES = """
CREATE VIEW candidates AS
SELECT * EXCLUDE (number, k), number // k AS position, number % k + 1 AS rank, exp(logprob::DOUBLE) AS probability
FROM (
    SELECT key, audit_group, mode, run_id, prompt_id, sample_index, collected_at, teacher.model AS model, k,
           unnest(range(len(top_ids))) AS number,
           unnest(top_ids) AS id,
           unnest(top_logprobs) AS logprob
    FROM soft_labels
)
WHERE id <> -1"""


def statements(used: Collection[str] = ("tokens", "candidates")) -> list[str]:
    """What defines the macros, and those of the two computed views that are used, where soft_labels is."""
    views = {"tokens": TOKENS, "candidates": CANDIDATES}
    return [f"CREATE MACRO {macro}" for macro in MACROS.values()] + [views[name] for name in views if name in used]
