"""Everything that the collectors raise on purpose: what a person should do next is in the message, what a program
should do next is in the type. Only `Transient` errors are worth asking again; all others end a row or an endpoint.

    CollectError                      exit 1
    ├── RequestError                  about one request
    │   ├── Transient                 asking again may help
    │   │   ├── TransportError        no whole response arrived
    │   │   └── ServerBusy            429, 408, 409 or 5xx
    │   └── Rejected                  the response cannot become a row
    │       └── Poison                the row fails an engine again and again
    ├── EndpointStopped               nothing more can be asked of this endpoint
    ├── EndpointUnfit                 the probe contradicts what the run needs
    ├── PromptError           exit 2  the prompts cannot be read
    ├── KeyMissing            exit 2  the endpoint's key is not where the run file says
    ├── ScheduleMissing       exit 2  the run file does not say when its run starts
    ├── PolicyRefused         exit 3  the gate denies
    ├── BudgetSpent           exit 4  the next request could exceed the budget
    ├── ReviewNeeded          exit 5  the gate needs a fact or a waiver
    └── Interrupted           exit 130  stopped by a signal, resumable
"""

from typing import ClassVar


class CollectError(Exception):
    """Base class of the room; the message is one sentence that says what to do next."""

    exit_code: ClassVar[int] = 1


class RequestError(CollectError):
    """One request failed; the run goes on."""


class Transient(RequestError):
    """Asking again may help. `retry_after` is what the server wished for, in seconds from now."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class TransportError(Transient):
    """The connection failed, stalled or ended early: no whole response arrived."""


class ServerBusy(Transient):
    """The server answered 429, 408, 409 or 5xx."""


class Rejected(RequestError):
    """The response cannot become a row: it is kept as a reject with its raw bytes under the reason `code`."""

    def __init__(self, code: str, detail: str, *, raw: bytes = b"", status: int | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.raw = raw
        self.status = status


class Poison(Rejected):
    """The same row failed the engine as often as is tolerated: it is set aside so that the others can go on."""


class EndpointStopped(CollectError):
    """The endpoint refuses this client or cannot be reached: nothing more is asked of it in this run."""


class EndpointUnfit(CollectError):
    """What the probe found out contradicts what the run asks for: the run does not start."""


class PromptError(CollectError):
    """The prompts cannot be read as they are; the message names the file and the line."""

    exit_code = 2


class KeyMissing(CollectError):
    """The place that the run file names for the endpoint's key does not hold one."""

    exit_code = 2


class ScheduleMissing(CollectError):
    """The run file does not say when its run starts."""

    exit_code = 2


class PolicyRefused(CollectError):
    """The policies deny the collection or the use that it is for."""

    exit_code = 3


class BudgetSpent(CollectError):
    """The worst case of the next request does not fit into what is left of the budget."""

    exit_code = 4


class ReviewNeeded(CollectError):
    """The policies need a fact or a waiver before anything may be asked."""

    exit_code = 5


class Interrupted(CollectError):
    """The run was stopped by a signal; what was received is committed and the same command resumes."""

    exit_code = 130
