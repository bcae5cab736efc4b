"""Keyword arguments of updates, and the messages that they make."""

from typing import Any, TypedDict

from scoring_client.errors import invalid
from scoring_client.proto import admin_pb2, weights_pb2
from scoring_client.values.messages import set_fields
from scoring_client.weights.given import GivenWeights
from scoring_client.weights.plan import PlanOptions, Rename
from scoring_client.weights.results import ProgressCallback, RunningSamples, Staging


class UpdateOptions(TypedDict, total=False):
    """Of push_weights and update_weights."""

    model: str
    """Model to update. Default: the client's; empty = the only one served."""
    base_version: int | None
    """The running version must be exactly this, now and at the commit."""
    allow_older_version: bool
    """``version`` may be the running one or less, as for going back."""
    weights_digest: str
    """Digest that the new weights must have."""
    running_samples: RunningSamples
    """What becomes of samples that are being drawn. Default: "finish"."""
    staging: Staging
    """Where the new weights are put meanwhile. Default: "auto"."""
    timeout: float | None
    """Seconds for the whole update; None = no limit. Default: the client's."""
    on_progress: ProgressCallback | None
    """Called with a WeightProgress, in the caller's thread."""


class PushOptions(UpdateOptions, total=False):
    """Of push_weights."""

    partial: bool
    """Tensors that are not given keep their values. One that comes in parts, such as experts one by
    one, comes with all of them or none."""
    convert_dtypes: bool
    """Floating-point tensors are converted to the model's element types."""
    digest: bool
    """Compute the digest here while sending, and have the server compare it with its own."""
    names: Rename | None
    """Maps a trainer's names to the model's, or to None for tensors to leave out."""
    merged_lora: bool
    """The base layers of PEFT's model include its adapters (``merge_adapter()``)."""


_RUNNING: dict[RunningSamples, weights_pb2.RunningSamples] = {
    "finish": weights_pb2.RUNNING_SAMPLES_FINISH,
    "continue": weights_pb2.RUNNING_SAMPLES_CONTINUE,
    "abort": weights_pb2.RUNNING_SAMPLES_ABORT,
}
_STAGING: dict[Staging, weights_pb2.StagingMode] = {
    "auto": weights_pb2.STAGING_MODE_AUTO,
    "beside": weights_pb2.STAGING_MODE_BESIDE,
    "in_place": weights_pb2.STAGING_MODE_IN_PLACE,
}


def update_options(version: int, options: PushOptions) -> weights_pb2.WeightUpdateOptions:
    """Return the message with an update's version, conditions and policies.

    Raises:
        InvalidRequestError: a value that the message cannot hold.
    """
    message = weights_pb2.WeightUpdateOptions()
    running: Any = options.get("running_samples", "finish")
    staging: Any = options.get("staging", "auto")
    set_fields(
        message,
        "options",
        version=version,
        base_version=options.get("base_version"),
        allow_older_version=options.get("allow_older_version"),
        partial=options.get("partial"),
        convert_dtypes=options.get("convert_dtypes"),
        weights_digest=options.get("weights_digest"),
        running_samples=_choice("running_samples", running, _RUNNING),
        staging=_choice("staging", staging, _STAGING),
    )
    return message


def plan_options(options: PushOptions, given: GivenWeights) -> PlanOptions:
    """Return how the tensors of a push are matched."""
    return PlanOptions(
        rename=options.get("names"),
        merged_lora=given.merged_lora or options.get("merged_lora", False),
        partial=options.get("partial", False),
        convert_dtypes=options.get("convert_dtypes", False),
        digest=options.get("digest", False),
    )


def push_begin(model: str, version: int, options: PushOptions) -> admin_pb2.PushWeightsBegin:
    """Return what a stream of weights begins with.

    Raises:
        InvalidRequestError: as of ``update_options``.
    """
    return admin_pb2.PushWeightsBegin(model=model, options=update_options(version, options))


def begin_message(begin: admin_pb2.PushWeightsBegin, *, server_converts: bool) -> bytes:
    """Return the first message of a stream of weights.

    Args:
        begin: What it says.
        server_converts: Whether a tensor may come in another type than the model's. Those that were
            converted here come as if nobody had asked for it.
    """
    begin.options.convert_dtypes = server_converts
    return admin_pb2.PushWeightsRequest(begin=begin).SerializeToString()


def commit_message(weights_digest: str = "") -> bytes:
    """Return the last message of a stream of weights."""
    commit = admin_pb2.PushWeightsCommit(weights_digest=weights_digest)
    return admin_pb2.PushWeightsRequest(commit=commit).SerializeToString()


def update_request(
    model: str,
    version: int,
    path: str | None,
    repository: str | None,
    revision: str | None,
    options: UpdateOptions,
) -> admin_pb2.UpdateWeightsRequest:
    """Return the request for weights that the server reads itself.

    Raises:
        InvalidRequestError: not exactly one source, or as of ``update_options``.
    """
    if (path is None) == (repository is None):
        raise invalid("source", "give a path or a repository")
    if revision is not None and repository is None:
        raise invalid("hub.revision", "a revision needs a repository")
    settings: Any = options
    request = admin_pb2.UpdateWeightsRequest(model=model, options=update_options(version, settings))
    if repository is not None:
        set_fields(request.hub, "hub", repository=repository, revision=revision)
    else:
        request.path = path or ""
    return request


def _choice(field: str, value: Any, choices: Any) -> int:
    if value not in choices:
        raise invalid(field, f"{value!r} is none of {', '.join(choices)}")
    number: int = choices[value]
    return number
