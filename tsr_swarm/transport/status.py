"""Errors to gRPC statuses and back, so that a refusal reaches the other side with its own sentence."""

import re
from typing import Any

import grpc

from tsr_swarm.errors import PeerError, RefusedError, SwarmError, UnreachableError

REASON_KEY = "tsr-reason"
_MAX_DETAIL = 1000  # gRPC carries it in a header
_REASON = re.compile(r"[a-z][a-z0-9_.]{0,31}")


def status_of(error: SwarmError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """The status, the sentence and the metadata with which ``error`` leaves this process."""
    codes = {
        RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
        PeerError: grpc.StatusCode.INVALID_ARGUMENT,
        UnreachableError: grpc.StatusCode.UNAVAILABLE,
    }
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    metadata = ((REASON_KEY, error.reason),) if isinstance(error, PeerError) else ()
    return code, str(error)[:_MAX_DETAIL], metadata


def error_of(failure: grpc.aio.AioRpcError, address: str, method: str, seconds: float) -> SwarmError:
    """The error that a failed call raises at its caller."""
    sentence = printable(failure.details() or "")
    match failure.code():
        case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return RefusedError(sentence or f"{address} refused {method} without a reason; ask the run's organiser.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return RefusedError(f"{address} does not know {method}; install the version that the run's organiser uses.")
        case grpc.StatusCode.INVALID_ARGUMENT:
            return PeerError(_reason(failure), sentence or f"{address} refused {method} without a reason.")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return timed_out(address, method, seconds)
        case grpc.StatusCode.UNAVAILABLE:
            return UnreachableError(f"{address} cannot be reached for {method}: {_why(sentence)}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return UnreachableError(f"{address} is too busy for {method}, or a message was too large ({sentence}).")
        case code:
            return UnreachableError(f"{address} failed at {method} ({code.name}): {sentence}")


def timed_out(address: str, method: str, seconds: float) -> UnreachableError:
    """The error of a call without an answer for ``seconds``."""
    return UnreachableError(
        f"{address} did not answer {method} within {seconds:g} s; check that it is running and that both lines work."
    )


def printable(text: str) -> str:
    """One line of text from the other side, without what could control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_DETAIL])


def _reason(failure: grpc.aio.AioRpcError) -> str:
    metadata: Any = failure.trailing_metadata() or ()
    reason = next((value for key, value in metadata if key == REASON_KEY), "")
    return reason if isinstance(reason, str) and _REASON.fullmatch(reason) else "refused"


def _why(detail: str) -> str:
    low = detail.lower()
    if "refused" in low:
        return "nothing listens there; check the address and port, and that the other side is running."
    if "name" in low and ("resol" in low or "dns" in low or "domain" in low):
        return "its name does not resolve; check the spelling and this machine's DNS."
    if "timed out" in low or "timeout" in low or "no route" in low or "unreachable" in low:
        return "no answer came back; check the address, and that no firewall drops the port."
    return f"the connection failed ({detail[:200]}); check that it is running and that its port is open."
