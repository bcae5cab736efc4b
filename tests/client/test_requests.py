"""What callers hand in: mistakes are named with the path of the field before anything is sent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring_client import (
    Completion,
    Expect,
    InvalidRequestError,
    PromptGroup,
    RequestContext,
    SamplePrompt,
    ScoringClient,
)
from scoring_client.calls.requests import group_messages, prompt_messages
from scoring_client.values.spans import as_spans, spans_of_mask


@given(mask=st.lists(st.booleans(), max_size=40))
def test_spans_cover_exactly_the_mask(mask):
    spans = spans_of_mask(np.array(mask, dtype=bool))
    covered = [row for start, length in spans for row in range(start, start + length)]
    assert covered == [i for i, wanted in enumerate(mask) if wanted]
    # As few spans as there are runs: each begins after a row that is not wanted.
    assert all(start == 0 or not mask[start - 1] for start, _ in spans)
    assert all(length > 0 for _, length in spans)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([True, False], "the mask has 2 entries for 3 tokens"),
        ([[0, 1, 2]], "expected spans"),
        ([0.5, 1.0, 0.0], "expected spans"),
        ([0, 1, 2], "expected spans"),
        ([(0, 2), (1, 1)], "overlap or are unordered"),
        ([(2, 1), (0, 1)], "overlap or are unordered"),
        ([(-1, 2)], "no span"),
        ([(0, 0)], "no span"),
        ([(0, 10**12)], "no span"),
        ([(0, 1), (2,)], "expected spans .*inhomogeneous"),
        (np.zeros((1, 3), dtype=bool), r"got bool \[1, 3\]"),
    ],
)
def test_bad_rows(rows, complaint):
    with pytest.raises(InvalidRequestError, match=complaint) as raised:
        as_spans(rows, 3, "groups[1].completions[2].rows")
    assert raised.value.violations[0].field == "groups[1].completions[2].rows"


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32])
def test_a_mask_may_be_of_any_type(dtype):
    assert as_spans(np.array([0, 1, 1, 0, 1], dtype=dtype), 5, "rows") == [(1, 2), (4, 1)]


@pytest.mark.parametrize("rows", [[0], (0, 1), np.array([0, 1]), np.zeros(1, dtype=np.uint8)])
def test_what_may_be_a_mask_or_indices_is_refused(rows):
    with pytest.raises(InvalidRequestError, match="may be a mask or the indices") as raised:
        as_spans(rows, len(rows), "rows")
    assert "[(row, 1) for row in rows]" in str(raised.value)


@pytest.mark.parametrize(
    ("mask", "spans"),
    [([1], [(0, 1)]), ([1, 0], [(0, 1)]), ([1, 1], [(0, 2)]), ([0, 0], []), ([0.0, 1.0], [(1, 1)])],
)
def test_what_can_only_be_a_mask_is_one(mask, spans):
    assert as_spans(mask, len(mask), "rows") == spans
    assert as_spans([bool(entry) for entry in mask], len(mask), "rows") == spans


def test_indices_are_told_how_to_be_spans():
    with pytest.raises(InvalidRequestError, match=r"got int\d+ \[3\]; give a mask as bools"):
        as_spans([0, 1, 4], 5, "rows")
    rows = np.array([0, 1, 4], dtype=np.int32)
    assert as_spans([(row, 1) for row in rows], 5, "rows") == [(0, 1), (1, 1), (4, 1)]


def test_a_mask_needs_token_ids():
    with pytest.raises(InvalidRequestError, match="needs a completion given as token ids"):
        group_messages([("a", [Completion("bc", rows=[True, False])])])
    messages, _ = group_messages([("a", [Completion("bc", rows=[(0, 1)])])])
    assert messages[0].completions[0].rows[0].length == 1


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3],
        (1, 2, 3),
        range(1, 4),
        np.array([1, 2, 3]),
        np.array([1, 2, 3], dtype=np.uint8),
        np.array([1, 2, 3], dtype=np.int64)[::1],
        np.arange(6)[1:4],
        [np.int64(1), 2, 3],
    ],
)
def test_whatever_holds_integers_is_token_ids(tokens):
    messages, asked = group_messages([(tokens, [tokens])])
    assert list(messages[0].prompt.token_ids) == [1, 2, 3]
    assert list(messages[0].completions[0].token_ids) == [1, 2, 3]
    assert asked[0, 0].token_ids.dtype == np.int32
    assert list(prompt_messages([tokens])[0].token_ids) == [1, 2, 3]


@pytest.mark.parametrize(
    ("groups", "path", "complaint"),
    [
        ([], "groups", "at least one"),
        ("text", "groups", "expected a list"),
        (("prompt", ["completion"]), "groups", "did you mean [('prompt', ['completion'])]?"),
        (([5, 6], [[7]]), "groups", "did you mean [([5, 6], [[7]])]?"),
        ((["a", ["b"]], ["c"]), "groups[1]", "expected a PromptGroup"),
        (["text"], "groups[0]", "expected a PromptGroup"),
        ([("prompt",)], "groups[0]", "expected a PromptGroup"),
        ([("prompt", "completion")], "groups[0].completions", "did you mean ['completion']"),
        ([("prompt", [])], "groups[0].completions", "at least one"),
        ([([1], [1, 2, 3])], "groups[0].completions[0]", "expected text or token ids, got 1"),
        ([("a", ["b"]), (5, ["b"])], "groups[1].prompt", "got 5"),
        ([(b"a", ["b"])], "groups[0].prompt", "got b'a'"),
        ([(None, ["b"])], "groups[0].prompt", "got None"),
        ([("a", ["b", [1.5]])], "groups[0].completions[1]", "integer token ids, got float64"),
        ([("a", [[True]])], "groups[0].completions[0]", "got bool"),
        ([("a", [[[1, 2]]])], "groups[0].completions[0]", "shape [1, 2]"),
        ([("a", [[1, 2**40]])], "groups[0].completions[0].token_ids[1]", "no 32-bit integer"),
        (
            [("a", [Completion([1], candidates=[0.5])])],
            "groups[0].completions[0].candidate_token_ids",
            "expected integers",
        ),
        (
            [("a", [Completion([1], candidates=[[2**40]])])],
            "groups[0].completions[0].candidate_token_ids",
            "32-bit",
        ),
        ([("a", [[[1, 2], [3]]])], "groups[0].completions[0]", "inhomogeneous"),
        ([("a", [{"input_ids": [1]}])], "groups[0].completions[0]", "got {'input_ids': [1]}"),
        ([("a", [np.int64(7)])], "groups[0].completions[0]", "a single id"),
        ([("a", ["b\ud800"])], "groups[0].completions[0].text", "character 1 is '\\ud800'"),
        ([("\udcff", ["b"])], "groups[0].prompt.text", "half of a surrogate pair"),
        (
            [("a", [Completion([1], candidates=[[1], [2, 3]])])],
            "groups[0].completions[0].candidate_token_ids",
            "inhomogeneous",
        ),
        ([PromptGroup("a", ["b"], temperature="hot")], "groups[0].processing.temperature", "'hot'"),
        ([PromptGroup("a", ["b"], top_k=2**40)], "groups[0].processing.top_k", "does not fit"),
        ([PromptGroup("a", ["b"], defaults="mine")], "groups[0].processing.defaults", "'mine'"),
    ],
)
def test_bad_groups(groups, path, complaint):
    with pytest.raises(InvalidRequestError) as raised:
        group_messages(groups)
    assert raised.value.violations[0].field == path
    assert complaint in str(raised.value)
    assert raised.value.reason == "INVALID_FIELD"


WHOLE_IDS = "a whole sequence is scored as its first token and the rest: (ids[:1], [ids[1:]])"
WHOLE_TEXT = "ids = client.tokenize([text])[0], then (ids[:1], [ids[1:]])"
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("group", "hint"),
    [
        ("import numpy as np", WHOLE_TEXT),
        ([5, 6, 7], WHOLE_IDS),
        ([5, 6], WHOLE_IDS),
        ((5, 6), WHOLE_IDS),
        (np.arange(9), WHOLE_IDS),
        (CHAT, "apply_chat_template"),
        (CHAT[0], "apply_chat_template"),
        ((CHAT, ["b"]), "apply_chat_template"),
        (("a", [CHAT[1]]), "apply_chat_template"),
        (({"input_ids": [1], "attention_mask": [1]}, ["b"]), "give its ['input_ids']"),
        ((["a", "b"], ["c"]), "a text stands alone, in no list"),
    ],
)
def test_what_is_no_group_is_told_what_to_give(group, hint):
    with pytest.raises(InvalidRequestError) as raised:
        group_messages([group])
    assert hint in str(raised.value)


@pytest.mark.parametrize("prompts", [CHAT, [CHAT], [CHAT[:1]], [tuple(CHAT)]])
def test_a_chat_is_no_prompt(prompts):
    with pytest.raises(InvalidRequestError, match="a chat is tokenised by you"):
        prompt_messages(prompts)


def test_a_tuple_of_groups_is_as_good_as_a_list():
    messages, _ = group_messages((["a", ["b"]], ["c", ["d"]]))
    assert [message.prompt.text for message in messages] == ["a", "c"]


def test_what_stands_for_a_group_is_quoted_in_short():
    with pytest.raises(InvalidRequestError) as raised:
        group_messages([np.arange(1000)])
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("prompts", "path"),
    [
        ([], "prompts"),
        ("text", "prompts"),
        ([1, 2, 3], "prompts[0]"),
        ([SamplePrompt([1], seed=-1)], "prompts[0].seed"),
        ([SamplePrompt([1], seed=2**64)], "prompts[0].seed"),
        ([SamplePrompt([1], stop_token_ids=["x"])], "prompts[0].sampling.stop_token_ids"),
        (["a", "\ud800"], "prompts[1].text"),
        ([SamplePrompt([1], stop="\ud800")], "prompts[0].sampling.stop"),
        ([[1], SamplePrompt([1], max_tokens=1.5)], "prompts[1].sampling.max_tokens"),
    ],
)
def test_bad_prompts(prompts, path):
    with pytest.raises(InvalidRequestError) as raised:
        prompt_messages(prompts)
    assert raised.value.violations[0].field == path


@pytest.fixture(scope="module")
def nowhere():
    # Nothing is sent, so nothing needs to listen.
    with ScoringClient("127.0.0.1:1", max_attempts=1) as client:
        yield client


def test_mistakes_are_found_before_the_iterator_is_used(nowhere):
    with pytest.raises(InvalidRequestError):
        nowhere.score_iter([("prompt", "completion")])


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 10**9}, "n"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"on_error": "ignore"}, "on_error"),
        ({"stop": [3]}, "sampling.stop"),
        ({"context": {"request_id": "a"}}, "context"),
        ({"expect": {"weight_version": 7}}, "expect"),
        ({"top_logprobs": "many"}, "top_logprobs"),
        ({"temperature": "hot"}, "sampling.processing.temperature"),
        ({"seed": -1}, "sampling.seed"),
        ({"temperature": True}, "sampling.processing.temperature"),
        ({"top_p": True}, "sampling.processing.top_p"),
        ({"top_k": False}, "sampling.processing.top_k"),
        ({"n": True}, "n"),
        ({"min_tokens": np.True_}, "sampling.min_tokens"),
        ({"context": RequestContext(priority="high")}, "context.priority"),
        ({"context": RequestContext(tags={"a": 1})}, "context.tags"),
        ({"expect": Expect(weight_version="new")}, "expect.weight_version"),
    ],
)
def test_bad_options(nowhere, options, path):
    with pytest.raises(InvalidRequestError) as raised:
        nowhere.sample([[1]], **{"max_tokens": 1, **options})
    assert raised.value.violations[0].field == path


@pytest.mark.parametrize("texts", ["one", None, [3], ["a\ud800"]])
def test_bad_texts(nowhere, texts):
    with pytest.raises(InvalidRequestError) as raised:
        nowhere.tokenize(texts)
    assert raised.value.violations[0].field == "texts"


def test_what_was_given_is_quoted_in_short(nowhere):
    with pytest.raises(InvalidRequestError) as raised:
        nowhere.sample("long " * 1000, max_tokens=1)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("entropies", "entropy"),
        ("ranks", "rank"),
        ("logsumexps", "logsumexp"),
        ("log_kept_masses", "log_kept_mass"),
        ("temprature", "temperature"),
    ],
)
def test_an_option_called_like_a_field_of_the_result_is_told(nowhere, field, option):
    with pytest.raises(TypeError, match=f"'{field}'; did you mean '{option}'"):
        nowhere.score([("a", ["b"])], **{field: True})
    with pytest.raises(TypeError, match=r"'verbosity'$"):
        nowhere.score([("a", ["b"])], verbosity=1)


def test_options_that_do_not_exist(nowhere):
    with pytest.raises(
        TypeError, match=r"score\(\) got an unexpected keyword argument 'temprature'"
    ):
        nowhere.score([("a", ["b"])], temprature=1.0)
    with pytest.raises(TypeError, match=r"^score_iter\(\) got .* 'token_id_limit'"):
        nowhere.score_iter([("a", ["b"])], token_id_limit=5)
    with pytest.raises(TypeError, match=r"^topk_logprobs_slices\(\) got .* 'ranks'.*'rank'"):
        nowhere.topk_logprobs_slices([("a", ["b"])], 5, ranks=True)
    with pytest.raises(TypeError, match=r"^sample_iter\(\) got .*every result has it"):
        nowhere.sample_iter([[1]], token_ids=True)
    with pytest.raises(TypeError, match="'keep_realised'"):
        nowhere.sample([[1]], max_tokens=1, keep_realised=True)


def test_max_tokens_are_of_each_prompt_or_of_the_call(nowhere):
    missing = r"missing required keyword argument 'max_tokens': prompts\[1\] has none of its own"
    with pytest.raises(TypeError, match=missing):
        nowhere.sample([SamplePrompt([1], max_tokens=2), SamplePrompt([1])])


def test_k_has_to_be_said(nowhere):
    with pytest.raises(InvalidRequestError, match=r"^k: is required"):
        nowhere.topk_logprobs([("a", ["b"])], None)


class Unreadable:
    """As a nested tensor of torch: it says that it is a sequence, and is none."""

    def __array__(self):
        raise RuntimeError("no sizes")

    def __iter__(self):
        raise RuntimeError("no sizes")


@pytest.mark.parametrize("completions", [Unreadable(), np.array(5), {"a": 1}])
def test_what_cannot_be_taken_apart_is_told_with_its_path(completions):
    with pytest.raises(InvalidRequestError, match="expected a list of completions") as raised:
        group_messages([([1], completions)])
    assert raised.value.violations[0].field == "groups[0].completions"


def test_an_iterator_s_own_error_is_the_caller_s():
    def completions():
        yield [1]
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        group_messages([([1], completions())])


LISTED = "topk_logprobs(groups, k) lists the most likely tokens of each row"


@pytest.mark.parametrize(
    ("call", "option", "hint"),
    [
        ("sample", "tokens", "did you mean 'return_text'?"),
        ("sample", "text", "did you mean 'return_text'?"),
        ("sample", "k", "did you mean 'top_logprobs'?"),
        ("sample", "token_ids", "every result has it"),
        ("sample", "logprobs", "every result has it"),
        ("sample", "max_new_tokens", "did you mean 'max_tokens'?"),
        ("score", "logprobs", "every result has it"),
        ("score", "top_logprobs", LISTED),
        ("score_iter", "k", LISTED),
    ],
)
def test_hints_do_not_mislead(nowhere, call, option, hint):
    with pytest.raises(TypeError) as raised:
        getattr(nowhere, call)([([1], [[2]])], **{option: True})
    assert str(raised.value) == f"{call}() got an unexpected keyword argument {option!r}; {hint}"
