"""Columns of the soft-label table, version 1, and what its numbers mean, as Arrow schemas.

List elements are declared not null: readers decode them up to 65 % faster, so what is unknown has a value of its own
(NaN, 0, −1, −inf; said beside each column). A table written by a newer version is refused by name.
"""

import pyarrow as pa

from storage.errors import SchemaTooNew, TableDamaged

SCHEMA_VERSION = 1
ALIGNMENT = "top_*[i] is the distribution of token_ids[i]"

VERSION_KEY = "potstill.schema_version"
ALIGNMENT_KEY = "potstill.alignment"
MANTISSA_KEY = "potstill.mantissa_bits"


def numbers(type_: pa.DataType) -> pa.ListType:
    """A list whose elements are never null."""
    return pa.list_(pa.field("element", type_, nullable=False))


STRINGS = pa.list_(pa.field("element", pa.string(), nullable=False))
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
TEACHER = pa.struct(
    [
        ("model", pa.string()),
        ("revision", pa.string()),
        ("provider", pa.string()),
        ("access_path", pa.string()),
        ("served_by", pa.string()),
        ("engine", pa.string()),
        ("engine_version", pa.string()),
        ("endpoint_card", pa.string()),
    ]
)
SAMPLING = pa.struct(
    [
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int32()),
        ("min_p", pa.float64()),
        ("seed", pa.int64()),
        ("max_tokens", pa.int32()),
        ("n", pa.int32()),
    ]
)
USAGE = pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64()), ("cost_usd", pa.float64())])
TAIL_SUM = pa.struct([("temperature", pa.float32()), ("log_sums", numbers(pa.float32()))])
TIME = pa.timestamp("us", tz="UTC")


def _required(name: str, type_: pa.DataType) -> pa.Field:
    return pa.field(name, type_, nullable=False)


SOFT_LABELS = pa.schema(
    [
        # identity
        _required("key", pa.string()),  # hex sha256 of the canonical request
        _required("audit_group", pa.string()),
        _required("mode", pa.string()),  # generate, score, classify, mask
        _required("run_id", pa.string()),
        _required("prompt_id", pa.string()),
        _required("sample_index", pa.int32()),
        _required("collected_at", TIME),
        # text
        pa.field("messages", pa.list_(pa.field("element", MESSAGE, nullable=False))),
        pa.field("prompt", pa.string()),
        pa.field("completion", pa.string()),
        pa.field("reasoning", pa.string()),
        pa.field("finish_reason", pa.string()),
        # tokens
        pa.field("prompt_token_ids", numbers(pa.int32())),
        pa.field("token_ids", numbers(pa.int32())),  # T targets
        pa.field("token_logprobs", numbers(pa.float32())),  # T; NaN = unknown
        pa.field("token_ranks", numbers(pa.int32())),  # T; 1 = most likely, 0 = unknown
        pa.field("token_bytes", numbers(pa.binary())),  # T, where ids are not known
        pa.field("target_positions", numbers(pa.int32())),  # masked models; null for causal ones
        pa.field("label_set", STRINGS),  # classify: top_ids index it
        # soft labels
        _required("k", pa.int32()),
        pa.field("top_ids", numbers(pa.int32())),  # T·k, position-major, best first, −1 = missing
        pa.field("top_logprobs", numbers(pa.float32())),  # T·k, −inf exactly where the id is −1
        pa.field("log_tail", numbers(pa.float32())),  # T, −inf = no mass outside the top k
        # what the numbers mean
        _required("logprob_space", pa.string()),  # raw, scaled, processed, unknown
        _required("estimator", pa.string()),  # top_k, sampled, full
        pa.field("top_weights", numbers(pa.float32())),  # T·k, sampled only
        pa.field("tail_sums", pa.list_(pa.field("element", TAIL_SUM, nullable=False))),  # log Σ_tail p^{1/T}
        # provenance
        _required("teacher", TEACHER),
        pa.field("tokenizer_sha256", pa.string()),
        pa.field("template_sha256", pa.string()),
        pa.field("sampling", SAMPLING),
        pa.field("response_id", pa.string()),
        pa.field("raw_sha256", pa.string()),
        pa.field("usage", USAGE),
        pa.field("prompt_source", pa.string()),
        pa.field("prompt_licence", pa.string()),
        # licence
        _required("terms", STRINGS),  # "gemma-tou@2025-03-24"
        _required("policy_bundle", pa.string()),
        _required("collect_verdict", pa.string()),
        _required("decision", pa.string()),
        # quality
        pa.field("mean_entropy", pa.float32()),
        pa.field("mean_tail_mass", pa.float32()),
        pa.field("nll", pa.float32()),  # mean over the targets whose log-probability is known
        _required("flags", STRINGS),
        # what the prompt came with: added since the first tables, see ADDED
        pa.field("reference", pa.string()),  # the right answer, where it is known
        pa.field("domain", pa.string()),
    ]
)
ADDED = ("reference", "domain")
"""Columns added since version 1 was first written. An addition stands at the end, may be null and changes the meaning
of nothing before it: files without it read as null, an older table gets it with its next rows, the version stays."""


def is_soft_labels(schema: pa.Schema) -> bool:
    """Whether a file's columns are those of SOFT_LABELS, with none, some or all of the additions in their order."""
    first = len(SOFT_LABELS) - len(ADDED)
    return len(schema) >= first and bool(schema.equals(pa.schema(list(SOFT_LABELS)[: len(schema)])))


GROUPS = pa.schema(
    [
        _required("audit_group", pa.string()),
        _required("model", pa.string()),
        pa.field("revision", pa.string()),
        _required("access_path", pa.string()),
        pa.field("served_by", pa.string()),
        _required("signal", pa.string()),
        pa.field("prompt_licence", pa.string()),
        _required("terms", STRINGS),
    ]
)

REJECTS = pa.schema(
    [
        _required("key", pa.string()),
        _required("run_id", pa.string()),
        _required("prompt_id", pa.string()),
        _required("reason", pa.string()),  # a code
        _required("detail", pa.string()),
        _required("raw", pa.binary()),
        pa.field("status", pa.int32()),
        _required("rejected_at", TIME),
    ]
)

RUNS = pa.schema(
    [
        _required("run_id", pa.string()),
        _required("started_at", TIME),
        _required("updated_at", TIME),
        _required("outcome", pa.string()),  # running, done, stopped, budget, failed
        pa.field("detail", pa.string()),
        _required("config", pa.string()),  # the run's settings as JSON, without secrets
        _required("endpoint_cards", STRINGS),  # each as JSON
        _required("policy_bundle", pa.string()),
        _required("decision", pa.string()),
        _required("planned", pa.int64()),
        _required("committed", pa.int64()),
        _required("rejected", pa.int64()),
        _required("duplicates", pa.int64()),
        _required("requests", pa.int64()),
        _required("prompt_tokens", pa.int64()),
        _required("completion_tokens", pa.int64()),
        pa.field("cost_usd", pa.float64()),
        _required("prompts_done", pa.int64()),  # all prompts before this one are committed
        pa.field("prompts_digest", pa.string()),  # of exactly those prompts
    ]
)


def table_metadata(mantissa_bits: int) -> dict[str, str]:
    """What a table and each of its files say of themselves: schema version, alignment, mantissa bits."""
    return {VERSION_KEY: str(SCHEMA_VERSION), ALIGNMENT_KEY: ALIGNMENT, MANTISSA_KEY: str(mantissa_bits)}


def check_metadata(metadata: dict[str, str], where: str) -> int:
    """Mantissa bits of a table or file; raises SchemaTooNew, or TableDamaged where it is none of ours."""
    version = metadata.get(VERSION_KEY, "")
    if not version.isdecimal() or ALIGNMENT_KEY not in metadata:
        raise TableDamaged(
            f"{where} carries no potstill schema version: it was not written by potstill, choose another path."
        )
    if int(version) > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{where} has schema version {version}; this potstill knows versions up to {SCHEMA_VERSION}: "
            "upgrade potstill to read it."
        )
    if metadata[ALIGNMENT_KEY] != ALIGNMENT:
        raise TableDamaged(
            f"{where} says another alignment of labels and targets ({metadata[ALIGNMENT_KEY]!r}): do not train on it."
        )
    return int(metadata[MANTISSA_KEY])
