import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core import prefixes
from auxot.core.jobs import ChatMessage, Function, FunctionCall, Job, Tool, ToolCall
from auxot.core.prefixes import Chain, PrefixMap, chain_of
from auxot.core.protocol import encode

SYSTEM = ChatMessage(role="system", content="be brief")
TURNS = (
    ChatMessage(role="user", content="look it up"),
    ChatMessage(
        role="assistant", content=None, tool_calls=(ToolCall(id="c", function=FunctionCall(name="f", arguments="{}")),)
    ),
    ChatMessage(role="tool", content=[{"type": "text", "text": "found"}], tool_call_id="c"),
    ChatMessage(role="user", content='{"role":"user"}],"model":"x","tools":[]'),
    ChatMessage(role="assistant", content="yes"),
    ChatMessage(role="user", content="why?"),
)
TOOLS = (
    Tool(function=Function(name="f", parameters={"anyOf": [{"a": {}}], "required": [], "x": [{"y": {}}], "z": 0})),
    Tool(function=Function(name="g")),
)

LONG = "It is as it is. " * 250

messages = st.builds(
    ChatMessage,
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=st.one_of(
        st.text(max_size=40),
        st.text(min_size=1, max_size=40).map(lambda text: text * 300),
        st.text(max_size=20).map(lambda text: [{"type": "text", "text": text}]),
    ),
)


def chain(*turns: ChatMessage, **fields: object) -> Chain:
    settings: dict[str, object] = {"job_id": "j"}
    return chain_of(encode(Job(messages=turns, **{**settings, **fields})))  # type: ignore[arg-type]


def is_beginning(short: Chain, long: Chain) -> bool:
    n = len(short.nodes)
    return (long.nodes[:n], long.sizes[:n], long.n_shared) == (short.nodes, short.sizes, short.n_shared)


@pytest.mark.parametrize("n", range(1, len(TURNS)))
def test_a_conversation_that_goes_on_keeps_its_chain(n: int):
    """A message has another hash at the end of a prompt than within one, so the next turn is not recognised."""
    before, after = (chain(SYSTEM, *TURNS[:k], tools=TOOLS, max_tokens=k or None) for k in (n, n + 1))
    assert is_beginning(before, after)
    assert len(after.nodes) == len(before.nodes) + 1


settings = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("m"),
        "temperature": st.just(0.5),
        "max_tokens": st.integers(1, 9),
        "params": st.just({"n": 1, "a": [{"b": {}}], "c": 1}),
    },
)


@given(st.lists(messages, min_size=1, max_size=6), st.lists(messages, min_size=1, max_size=3), settings)
def test_any_conversation_that_goes_on_keeps_its_chain(
    history: list[ChatMessage], more: list[ChatMessage], fields: dict[str, object]
):
    """Some text ends a message too early, so the next turn is not recognised."""
    before, after = chain(*history), chain(*history, *more, job_id="other", **fields)
    assert is_beginning(before, after)
    assert len(after.nodes) > len(before.nodes)


@given(st.lists(messages, min_size=1, max_size=4), st.integers(0, 3), messages)
def test_a_changed_message_changes_the_rest(history: list[ChatMessage], place: int, other: ChatMessage):
    """Two prompts are taken for the same although they differ early on."""
    place %= len(history)
    if other == history[place]:
        return
    changed = [*history[:place], other, *history[place + 1 :]]
    ours, theirs = chain(*history), chain(*changed)
    n_before = len(chain(*history[:place]).nodes) if place else 0
    assert ours.nodes[:n_before] == theirs.nodes[:n_before]
    assert ours.nodes[-1] != theirs.nodes[-1]


def test_other_tools_are_another_prompt_and_other_settings_are_not():
    """Templates put the tools before all messages: a worker with other tools in its cache has nothing of use."""
    plain, armed = chain(*TURNS), chain(*TURNS, tools=TOOLS)
    assert not set(plain.nodes) & set(armed.nodes)
    assert not set(armed.nodes) & set(chain(*TURNS, tools=TOOLS[:1]).nodes)
    assert armed == chain(*TURNS, tools=TOOLS, temperature=None, max_tokens=5, params={"stop": [{"x": {}}], "a": 1})


def test_the_beginning_of_a_long_message_counts():
    """A long document with one question after the other, in one message, is read anew each time."""
    document = "It was a dark and stormy night. " * 1000
    first, second = (chain(ChatMessage(role="user", content=document + question)) for question in ("Who?", "Why now?"))
    n_same = sum(a == b for a, b in zip(first.nodes, second.nodes, strict=False))
    assert n_same == len(first.nodes) - 1
    assert first.sizes[n_same - 1] > len(document) - prefixes.LAST_BLOCK_BYTES


def test_raw_prompts_have_chains_and_other_jobs_have_not():
    """A raw completion is placed as if nothing were known of it, or an embedding as if it were a prompt."""
    short, long = (
        chain_of(encode(Job(job_id="j", model="m", messages=(), prompt=text))) for text in ("a" * 5000, "a" * 9000)
    )
    assert len(short.nodes) == 3
    assert short.nodes[:2] == long.nodes[:2]
    assert chain_of(encode(Job(job_id="j", model="m", messages=()))) == prefixes.NO_CHAIN
    assert chain_of(b"{}") == prefixes.NO_CHAIN


def test_a_prompt_of_any_size_has_a_bounded_chain():
    """A body of 30 MB, or of a hundred thousand messages, holds the router up and fills its memory."""
    huge = chain(ChatMessage(role="user", content="x" * (2 * prefixes.MAX_BYTES)), TURNS[0])
    many = chain(*[ChatMessage(role="user", content=str(n)) for n in range(5000)])
    assert len(huge.nodes) <= prefixes.MAX_CHAIN
    assert huge.sizes[-1] <= prefixes.MAX_BYTES
    assert len(many.nodes) == prefixes.MAX_CHAIN
    assert is_beginning(huge, chain(ChatMessage(role="user", content="x" * (2 * prefixes.MAX_BYTES)), *TURNS))


# Prompts as paths in a tree: what they have in common is what their first letters have in common.
words = st.text("ab", min_size=1, max_size=8)
steps = st.lists(st.tuples(st.sampled_from("wxyz"), words, st.booleans()), max_size=40)


def path(word: str) -> Chain:
    nodes = tuple(hash(word[: n + 1]) for n in range(len(word)))
    return Chain(nodes, tuple(range(1, len(word) + 1)))


@attrs.define
class Model:
    """What should be known, told plainly: the beginnings that each worker holds."""

    held: set[tuple[str, str]] = attrs.field(factory=set)

    def started(self, worker: str, word: str) -> None:
        self.held -= {(worker, word[: n + 1]) for n in range(len(word))}

    def ended(self, worker: str, word: str) -> None:
        self.held |= {(worker, word[: n + 1]) for n in range(len(word))}

    def longest(self, word: str) -> dict[str, int]:
        return {w: n + 1 for n in range(len(word)) for w in "wxyz" if (w, word[: n + 1]) in self.held}


@given(steps, words)
def test_who_holds_most_of_a_prompt_comes_first(history: list[tuple[str, str, bool]], word: str):
    """A worker that holds less of a prompt, or none, is preferred to one that holds more."""
    known, model = PrefixMap(), Model()
    for worker, prompt, has_ended in history:
        known.started(path(prompt), worker)
        model.started(worker, prompt)
        if has_ended:
            known.ended(path(prompt), worker)
            model.ended(worker, prompt)
    matches = known.matches(path(word))
    assert [match.n_bytes for match in matches] == sorted((match.n_bytes for match in matches), reverse=True)
    assert {match.worker_id: match.n_bytes for match in matches} == model.longest(word)


def test_what_many_conversations_share_draws_none_of_them():
    """All conversations of a quiet day crowd into one worker's cache, because they have the same instructions."""
    known = PrefixMap()
    system = ChatMessage(role="system", content=LONG)
    developer = ChatMessage(role="developer", content=LONG)
    notes = "The notes of this project. " * 200
    first, second = (chain(system, developer, ChatMessage(role="user", content=notes + name)) for name in "ab")
    known.ended(first, "w")
    assert known.matches(second) == []
    assert known.matches(first)[0].n_bytes == first.sizes[-1]
    alone, other = chain(system), chain(system, developer)
    known.ended(alone, "w")
    assert known.matches(alone)
    assert not known.matches(chain(system, developer, TURNS[0]))
    assert not known.matches(other)


def test_a_long_document_is_found_again():
    """The same book with another question is read by another worker."""
    known = PrefixMap()
    book = LONG * 10
    first, second = (chain(SYSTEM, ChatMessage(role="user", content=book + name), tools=TOOLS) for name in "ab")
    known.ended(first, "w")
    assert known.matches(second)[0].n_bytes > len(book) - prefixes.LAST_BLOCK_BYTES


@given(steps, st.integers(1, 10))
def test_what_is_remembered_is_bounded(history: list[tuple[str, str, bool]], max_nodes: int):
    """The router's memory grows with every prompt that it has ever seen."""
    known = PrefixMap(max_nodes=max_nodes)
    for worker, prompt, _ in history:
        known.ended(path(prompt), worker)
        assert len(known) <= max_nodes
    if history and len(history[-1][1]) <= max_nodes:
        worker, prompt, _ = history[-1]
        assert known.matches(path(prompt))[0].n_bytes == len(prompt)  # the newest is whole


def test_one_hash_has_a_bounded_number_of_holders():
    """A greeting that a thousand workers hold fills memory, and is gone through for each job."""
    known = PrefixMap()
    for n in range(100):
        known.ended(path("a"), str(n))
    matches = known.matches(path("a"))
    assert len(matches) == prefixes.MAX_HOLDERS
    assert "99" in {match.worker_id for match in matches}


def test_a_prompt_that_is_being_read_again_is_in_no_free_slot():
    """The same question asked four times at once waits on one worker for four slots, while three others are idle."""
    known = PrefixMap()
    known.ended(path("aaaa"), "w")
    known.started(path("aaaa"), "w")
    assert known.matches(path("aaaa")) == []
    assert len(known) == 0
