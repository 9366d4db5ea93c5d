"""run.toml as models: each section by itself, then what only makes sense together. Secrets are named here (an
environment variable or a file), never held, so that a configuration can be stored and printed as it is."""

import hashlib
import json
import os
import string
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
)
from pydantic import field_validator as check_field
from pydantic import model_validator as check_model

from collectors.cron import ScheduleSettings
from collectors.errors import KeyMissing
from collectors.origin import check_base_url
from policies.identity import Teacher
from policies.settings import LocalPath, Settings, read_toml
from policies.use import Use

Kind = Literal["embedded", "vllm", "sglang", "llamacpp", "openai", "tgi", "local"]
Mode = Literal["generate", "score", "classify", "mask"]
PARQUET = frozenset({".parquet", ".pq"})
IN_PROCESS: frozenset[str] = frozenset({"embedded", "local"})


def _beside_the_run_file(spec: str, info: ValidationInfo) -> str:
    """`module:function` → `/folder of the run file/module.py:function`."""
    module, _, function = spec.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError("name a function as module:function, where module.py lies beside the run file")
    folder = Path((info.context or {}).get("folder", "")).absolute()
    return f"{folder.joinpath(*module.split('.'))}.py:{function}"


LocalFunction = Annotated[str, AfterValidator(_beside_the_run_file)]


class TeacherSettings(Settings):
    """The teacher as the register knows it; `tokenizer` is a tokenizer.json whose hash the rows carry."""

    model: str = Field(min_length=1)
    revision: str | None = None
    tokenizer: LocalPath | None = None


class EndpointSettings(Settings):
    """One place where the teacher answers. `embedded` and `local` have no address; all others need `base_url`.

    `served_model`: the server's own name for the model.
    `model_path`: another GGUF for `embedded`; the folder of the model for `local`, else teacher.model is its name.
    `callable`, `dtype`: for `local` alone: a function of yours as the teacher; the numbers that a model computes in.
    """

    kind: Kind
    base_url: str | None = None
    served_model: str | None = None
    served_by: str | None = None
    access_path: str = "self_host"
    api_key_env: str | None = None
    api_key_file: LocalPath | None = None
    timeout_seconds: PositiveFloat = 300.0
    model_path: LocalPath | None = None
    context_length: PositiveInt = 4096
    slots: PositiveInt = 1
    callable: LocalFunction | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @check_field("kind", mode="before")
    @classmethod
    def _refuse_ollama(cls, kind: object) -> object:
        if kind == "ollama":
            raise ValueError("Ollama sends neither token ids nor bytes, so its labels cannot be exact: serve the same "
                             "GGUF with llama.cpp (kind = \"llamacpp\" or \"embedded\")")  # fmt: skip
        return kind

    @check_field("base_url")
    @classmethod
    def _check_address(cls, url: str | None) -> str | None:
        return None if url is None else check_base_url(url)

    @check_model(mode="after")
    def _check_together(self) -> Self:
        if self.kind in IN_PROCESS and self.base_url is not None:
            raise ValueError(f"kind = {self.kind!r} runs on this machine: leave base_url out")
        if self.kind not in IN_PROCESS and self.base_url is None:
            raise ValueError(f"kind = {self.kind!r} needs base_url, such as http://127.0.0.1:8000")
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("give api_key_env or api_key_file, not both")
        if self.model_path is not None and self.kind not in IN_PROCESS:
            raise ValueError("model_path belongs to kind = 'embedded' or 'local'; a server knows its own model")
        if self.kind != "local" and (self.callable is not None or self.dtype != "auto"):
            raise ValueError("callable and dtype belong to kind = 'local'; a server has its own model and numbers")
        if self.callable is not None and self.model_path is not None:
            raise ValueError("give callable or model_path, not both: either of them is the teacher")
        return self

    def api_key(self) -> str | None:
        """The secret itself, read now; raises KeyMissing when the place that is named does not hold one."""
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env, "").strip()
            if not key:
                raise KeyMissing(f"The environment variable {self.api_key_env} is empty: set it to the endpoint's key.")
            return key
        if self.api_key_file is not None:
            try:
                key = self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise KeyMissing(
                    f"The key file {self.api_key_file} cannot be read: {error.__class__.__name__}."
                ) from error
            if not key or any(character.isspace() for character in key):
                raise KeyMissing(f"The key file {self.api_key_file} must hold one key and nothing else.")
            return key
        return None

    @property
    def wire_kind(self) -> str:
        """The kind that keys and providers know: an embedded server speaks llama.cpp."""
        return "llamacpp" if self.kind == "embedded" else self.kind


class LimitSettings(Settings):
    """What the endpoint allows, for each endpoint by itself; None is no limit. `attempts` bounds one request."""

    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    concurrency: PositiveInt | Literal["adaptive"] = 32
    attempts: PositiveInt = 8


class PriceSettings(Settings):
    """US dollars for a million tokens."""

    input_per_million: NonNegativeFloat
    output_per_million: NonNegativeFloat


class BudgetSettings(Settings):
    """Hard limits over all starts of a run; None is no limit."""

    usd: PositiveFloat | None = None
    tokens: PositiveInt | None = None
    requests: PositiveInt | None = None


class PromptSettings(Settings):
    """Where prompts come from: a .jsonl or .parquet file, a folder of Parquet, or another soft-label table.

    `sql` selects from Parquet (`FROM prompts`) or from a soft-label table's views.

    `template` builds the prompt from the line's fields (`"Translate: {text}"`); `system` goes before as a system
    message; `as_chat` sends a plain prompt as one user message.
    """

    path: LocalPath
    sql: str | None = None
    template: str | None = None
    system: str | None = None
    as_chat: bool = False
    licence: str | None = None

    @check_model(mode="after")
    def _check_together(self) -> Self:
        if self.sql is not None and not self.path.is_dir() and self.path.suffix not in PARQUET:
            raise ValueError("sql selects from Parquet or from a soft-label table, not from a file of lines")
        return self

    @check_field("template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        for _, name, form, conversion in string.Formatter().parse(template or ""):
            if name is not None and (not name.isidentifier() or form or conversion):
                raise ValueError("a template knows plain named fields only, such as {text}; write {{ for a brace")
        return template


class AskSettings(Settings):
    """What is asked for each prompt. `top_k` candidates return per position; `sampling_top_k` shapes the sampling.

    For `local` alone: `estimator` `sampled` adds `draws` candidates drawn from what is outside the top k, `full` keeps
    the whole distribution; `tail_sums` are temperatures T for which log Σ_tail p^{1/T} is kept too.
    """

    mode: Mode = "generate"
    bos: Literal["server", "add"] = "server"
    top_k: int = Field(default=20, ge=0, le=4096)
    estimator: Literal["top_k", "sampled", "full"] = "top_k"
    draws: PositiveInt = 50
    tail_sums: tuple[PositiveFloat, ...] = ()
    samples: PositiveInt = 1
    max_tokens: PositiveInt = 128
    temperature: NonNegativeFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    sampling_top_k: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    labels: tuple[str, ...] = ()

    @check_model(mode="after")
    def _check_together(self) -> Self:
        if (self.mode == "classify") != bool(self.labels):
            raise ValueError("labels and mode = 'classify' belong together: give the fixed set of labels, at least two")
        if self.mode == "classify" and (len(self.labels) < 2 or len(set(self.labels)) != len(self.labels)):
            raise ValueError("labels must hold at least two different labels")
        if self.samples > 1 and self.mode not in ("generate", "mask"):
            raise ValueError(f"samples > 1 would repeat the same row: mode = {self.mode!r} has no chance in it")
        if self.mode == "classify" and self.sees_all:
            raise ValueError("estimator and tail_sums are of no use in mode = 'classify': the whole set is kept anyway")
        if self.tail_sums and self.estimator == "sampled":
            raise ValueError("tail_sums belong to estimator = 'top_k' or 'full': sampled labels serve T = 1 alone")
        if 1.0 in self.tail_sums or len(set(self.tail_sums)) != len(self.tail_sums):
            raise ValueError("tail_sums names different temperatures, and not 1: that sum is always kept")
        return self

    @property
    def sees_all(self) -> bool:
        """Whether the teacher's whole distribution must be in view, which no server sends."""
        return self.estimator != "top_k" or bool(self.tail_sums)


def _inline_or_file(value: object, info: ValidationInfo) -> object:
    """`use = "use.toml"` is read in place, relative to the run file, so that a run always knows its whole use."""
    if not isinstance(value, str | Path):
        return value
    folder = (info.context or {}).get("folder", Path())
    return read_toml(Path(folder) / value, Use)


class RunConfig(Settings):
    """A whole run.toml. `name` is the file's stem unless the file says otherwise; it starts the run's id.

    keep_raw: archive every raw response beside the table, so that `potstill reparse` can read it again.
    waivers: files of the waivers that the gate takes into account; `collect --waiver` adds to them.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    table: LocalPath
    teacher: TeacherSettings
    endpoint: EndpointSettings | None = None
    endpoints: tuple[EndpointSettings, ...] = ()
    limits: LimitSettings = LimitSettings()
    price: PriceSettings | None = None
    budget: BudgetSettings = BudgetSettings()
    prompts: PromptSettings
    ask: AskSettings = AskSettings()
    use: Annotated[Use | None, BeforeValidator(_inline_or_file)] = None
    waivers: tuple[LocalPath, ...] = ()
    schedule: ScheduleSettings | None = None
    keep_raw: bool = False

    @check_model(mode="after")
    def _check_together(self) -> Self:
        if (self.endpoint is None) == (not self.endpoints):
            raise ValueError("give one [endpoint], or a pool of [[endpoints]], not both")
        if len({(one.wire_kind, one.access_path, one.served_by) for one in self.pool}) > 1:
            raise ValueError("the endpoints of a pool must be equivalent: same kind, access_path and served_by")
        if self.budget.usd is not None and self.price is None:
            raise ValueError("budget.usd needs a [price]: without one the cost of a request is not known")
        if self.ask.mode == "mask" and self.pool[0].kind != "local":
            raise ValueError("ask.mode = 'mask' needs endpoint.kind = 'local': no server scores masked positions")
        if self.ask.sees_all and self.pool[0].kind != "local":
            raise ValueError(
                "ask.estimator and ask.tail_sums need endpoint.kind = 'local': servers send the top k alone"
            )
        if self.pool[0].callable is not None and self.ask.mode != "classify":
            raise ValueError(
                "endpoint.callable gives probabilities of labels: set ask.mode = 'classify' and ask.labels"
            )
        return self

    @property
    def pool(self) -> tuple[EndpointSettings, ...]:
        """The endpoints of the run, at least one."""
        return (self.endpoint,) if self.endpoint is not None else self.endpoints

    def waived(self, files: tuple[Path, ...]) -> Self:
        """The same run with these waivers beside its own."""
        return self.model_copy(update={"waivers": (*self.waivers, *files)})

    @property
    def licensed_teacher(self) -> Teacher:
        """The teacher as the policies judge it."""
        first = self.pool[0]
        return Teacher(model=self.teacher.model, revision=self.teacher.revision, access_path=first.access_path,
                       served_by=first.served_by)  # fmt: skip

    @property
    def run_id(self) -> str:
        """Name and digest of the settings that decide keys and table: what changes them is another run."""
        decisive: dict[str, Any] = {
            "table": str(self.table),
            "teacher": self.teacher.model_dump(mode="json"),
            "endpoint": [self.pool[0].wire_kind, self.pool[0].access_path, self.pool[0].served_by],
            "prompts": self.prompts.model_dump(mode="json"),
            "ask": self.ask.model_dump(mode="json"),
        }
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_run(path: Path) -> RunConfig:
    """Read and check a run file; raises policies.settings.ConfigError with all that is wrong in it."""
    config = read_toml(path, RunConfig)
    if "name" in config.model_fields_set:
        return config
    stem = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in path.stem).strip("-")
    return config.model_copy(update={"name": stem[:64] or "run"})
