"""What `help` says: readers of the docs are sent there."""

import dataclasses
import inspect
import pydoc

import pytest

import scoring_client
from scoring_client.values.options import CallOptions, ProcessingOptions

EXPORTED = {
    name: value
    for name in scoring_client.__all__
    if isinstance(value := getattr(scoring_client, name), type)
}
WITH_FIELDS = [
    name
    for name, value in EXPORTED.items()
    if dataclasses.is_dataclass(value) or hasattr(value, "__required_keys__")
]


def fields(cls):
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls) if field.name != "_"}
    return cls.__required_keys__ | cls.__optional_keys__


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_help_shows_every_field(name):
    shown = pydoc.render_doc(EXPORTED[name], renderer=pydoc.plaintext)
    described = shown.partition("Attributes:")[2]
    assert {f for f in fields(EXPORTED[name]) if f"{f}: " in described} == fields(EXPORTED[name])


def test_the_words_are_those_below_the_fields():
    shown = inspect.getdoc(scoring_client.CompletionTopK)
    assert shown.startswith("One completion's scores with the K most likely tokens of every row.\n")
    assert "\n    rows: [T], completion-relative, ascending; with spans or a mask only" in shown
    wrapped = "logits / temperature at the realised\n        tokens. The temperature is applied"
    assert wrapped in shown
    assert "\n    top_logprobs: [T, K], nats, over the full vocabulary" in shown
    assert "\n    temperature: Divisor of the logits" in inspect.getdoc(scoring_client.PromptGroup)
    assert "\n    retry_delay: Seconds after which" in inspect.getdoc(scoring_client.ScoringError)
    # Without fields of its own a class says what it is, and no more.
    assert inspect.getdoc(scoring_client.UpdateInProgressError) == (
        "Another update of the weights is under way; one at a time."
    )


def test_options_are_exported_with_those_that_every_call_has():
    shared = fields(CallOptions) | fields(ProcessingOptions)
    for name in ("ScoreOptions", "TopKOptions", "SampleOptions"):
        assert shared < fields(EXPORTED[name])


def test_without_the_source_the_summary_remains(monkeypatch):
    def unknown(module):
        raise OSError("no source")

    monkeypatch.setattr(inspect, "getsource", unknown)
    scoring_client.values.field_docs._classes.cache_clear()
    assert (
        inspect.getdoc(scoring_client.WeightSpan)
        == "Tokens drawn under one version of the weights."
    )
    monkeypatch.undo()
    scoring_client.values.field_docs._classes.cache_clear()
    assert "first_token: First token of the span" in inspect.getdoc(scoring_client.WeightSpan)
