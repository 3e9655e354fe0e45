"""Agents: declared by a decorator that registers nothing, hosted by a registry that reports every mistake."""

from __future__ import annotations

from typing import Any

import pytest

from dafx_actors import AgentThread, ChatMessage, ModelReply, ModelRequest, Transcript, Turn, as_tool, durable_agent
from dafx_actors.agents import Agent, AgentRegistry, definition_of
from dafx_actors.errors import ConfigurationError
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import agent_name
from dafx_actors.testing import ScriptedModel


@durable_agent
class Joker:
    """Tells jokes.

    Good ones.
    """

    instructions = "You are good at telling jokes."


def hosted(agent: object) -> Agent:
    return AgentRegistry().add(agent)[0]


def turn(**options: Any) -> Turn:
    model = ScriptedModel(lambda request: f"{request.messages[-1].text} {sorted(request.options.items())}")
    request = RunRequest(
        correlation_id="c1",
        messages=(ChatMessage("user", "Hello"), ChatMessage("user", "you")),
        options=options,
        response_schema={"type": "object"},
    )
    return Turn(
        thread=AgentThread("Joker", "t1"),
        request=request,
        transcript=Transcript(),
        messages=request.messages,
        complete=model.complete,
    )


def test_a_bare_declaration_takes_name_and_description_from_the_class() -> None:
    definition = definition_of(Joker)
    assert definition is not None
    assert (definition.name, definition.description) == ("Joker", "Tells jokes.\n\nGood ones.")
    assert (definition.model, definition.durability, definition.options) == (None, "step", {})


def test_a_declaration_may_say_it_all() -> None:
    model = ScriptedModel()

    @durable_agent(name="joker-2", description="x", model=model, durability="turn", options={"temperature": 0})
    class Another:
        instructions = "x"

    definition = definition_of(Another())
    assert definition is not None
    assert (definition.name, definition.description, definition.model) == ("joker-2", "x", model)
    assert (definition.durability, definition.options) == ("turn", {"temperature": 0})


def test_the_decorator_gives_back_the_class_itself() -> None:
    class Plain:
        instructions = "x"

    decorated: type[Plain] = durable_agent(Plain)
    assert decorated is Plain


def test_declaring_registers_nothing() -> None:
    assert AgentRegistry().names == []
    assert agent_name(Joker) == "Joker"


def test_everything_that_is_wrong_with_a_declaration_is_listed_at_once() -> None:
    wrong: Any = "sometimes"
    with pytest.raises(ConfigurationError) as caught:

        @durable_agent(name="no good", durability=wrong)
        class Broken:
            def respond(self, turn: Turn) -> str:
                return ""

    assert len(caught.value.mistakes) == 3
    assert all("Broken" in mistake for mistake in caught.value.mistakes)


@pytest.mark.parametrize("given", [None, 5, ["x"], b"x"])
def test_instructions_that_are_none_are_a_mistake(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="instructions"):

        @durable_agent
        class Silent:
            instructions = given


@pytest.mark.parametrize("given", ["Joker", agent_name, Joker()])
def test_only_a_class_can_be_an_agent(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"decorates a class, not .*; a name is given as `name=\.\.\.`"):
        durable_agent(given)


class NeverCloses:
    async def complete(self, request: ModelRequest) -> None: ...


@pytest.mark.parametrize("model", [5, NeverCloses()])
def test_a_model_that_is_none_is_a_mistake(model: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"`model` is an object with async `complete\(\)` and `aclose\(\)`"):
        durable_agent(model=model)(type("Joker", (), {"instructions": "x"}))


def test_methods_that_do_not_take_the_turn_are_mistakes() -> None:
    class Forgetful:
        def instructions(self) -> str:
            return ""

        async def respond(self) -> str:
            return ""

    with pytest.raises(ConfigurationError) as caught:
        durable_agent(Forgetful)
    assert [mistake.split(": ", 1)[1] for mistake in caught.value.mistakes] == [
        "`instructions` must take the turn: `def instructions(self, turn)`",
        "`respond` must take the turn: `def respond(self, turn)`",
    ]


@pytest.mark.parametrize("name", ["", "9", "a b", "x" * 58])
def test_an_illegal_name_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        durable_agent(name=name)(type("Joker", (), {"instructions": "x"}))


def test_a_subclass_of_an_agent_is_an_agent_of_its_own_only_when_it_is_declared() -> None:
    @durable_agent(name="Child")
    class Child(Joker):
        pass

    assert [agent_name(Joker), agent_name(Child), agent_name(Child())] == ["Joker", "Child", "Child"]


def test_an_agent_is_named_by_class_instance_or_name() -> None:
    assert [agent_name(given) for given in (Joker, Joker(), "Joker")] == ["Joker"] * 3
    for wrong in (int, 5, "no good"):
        with pytest.raises(ConfigurationError):
            agent_name(wrong)


# --- The registry -------------------------------------------------------------------------------------------------


def test_classes_and_instances_are_hosted_in_the_order_in_which_they_came() -> None:
    @durable_agent
    class Pirate:
        def __init__(self, ship: str) -> None:
            self.instructions = f"You sail the {ship}."

    registry = AgentRegistry()
    registry.add(Pirate("Pearl"), Joker)
    assert registry.names == ["Pirate", "Joker"]
    assert next(iter(registry)).instance.instructions == "You sail the Pearl."


def test_all_mistakes_of_all_agents_are_listed_and_none_is_hosted() -> None:
    @durable_agent
    class Pirate:
        def __init__(self, ship: str) -> None:
            self.instructions = ship

    @durable_agent
    class Forgetful:
        def __init__(self) -> None:
            pass

    @durable_agent(name="JOKER")
    class Loud:
        instructions = "x"

    registry = AgentRegistry()
    with pytest.raises(ConfigurationError) as caught:
        registry.add(int, Pirate, Forgetful, Joker, Loud, "Joker")
    assert registry.names == []
    expected = ["`@durable_agent`", "needs arguments", "`instructions` are missing", "upper and lower case", "'Joker'"]
    assert len(caught.value.mistakes) == len(expected)
    assert all(part in mistake for part, mistake in zip(expected, caught.value.mistakes, strict=True))


def test_names_that_differ_in_case_only_are_one_name() -> None:
    registry = AgentRegistry()
    registry.add(Joker)
    with pytest.raises(ConfigurationError, match="upper and lower case count as the same"):
        registry.add(durable_agent(name="jOKER")(type("Other", (), {"instructions": "x"})))
    assert registry.names == ["Joker"]


# --- Instructions and answers -------------------------------------------------------------------------------------


@durable_agent
class WithMethod:
    def instructions(self, turn: Turn) -> str:
        return f"Method for {turn.thread}"


@durable_agent
class WithAsyncMethod:
    async def instructions(self, turn: Turn) -> str:
        return f"Async for {turn.correlation_id}"


@durable_agent
class WithStaticMethod:
    @staticmethod
    def instructions(turn: Turn) -> str:
        return f"Static for {turn.correlation_id}"


@durable_agent
class WithProperty:
    @property
    def instructions(self) -> str:
        return "Property"


@durable_agent
class WithOwnCode:
    async def respond(self, turn: Turn) -> str:
        return turn.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (Joker, "You are good at telling jokes."),
        (WithMethod, "Method for t1"),
        (WithAsyncMethod, "Async for c1"),
        (WithStaticMethod, "Static for c1"),
        (WithProperty, "Property"),
        (WithOwnCode, ""),
    ],
)
async def test_instructions_are_a_string_a_method_or_a_property(agent: type, said: str) -> None:
    assert await hosted(agent).instructions(turn()) == said


@pytest.mark.anyio
async def test_instructions_that_are_no_text_are_told_so() -> None:
    class Forgetful:
        def instructions(self, turn: Turn) -> None: ...

    with pytest.raises(TypeError, match="`instructions` of Forgetful returned None; return a str"):
        await hosted(durable_agent(Forgetful)).instructions(turn())


@pytest.mark.anyio
async def test_without_code_of_its_own_an_agent_asks_its_model() -> None:
    assert not hosted(Joker).responds
    assert (await hosted(Joker).respond(turn(seed=1))).message.text == "you [('seed', 1)]"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("Ha.", "Ha."),
        (ChatMessage("assistant", "Ha."), "Ha."),
        (ModelReply(message=ChatMessage("assistant", "Ha.")), "Ha."),
    ],
)
async def test_own_code_answers_with_a_text_a_message_or_a_reply(given: Any, text: str) -> None:
    @durable_agent
    class Own:
        async def respond(self, turn: Turn) -> Any:
            return given

    assert hosted(Own).responds
    reply = await hosted(Own).respond(turn())
    assert (reply.message.text, reply.message.role) == (text, "assistant")


@pytest.mark.anyio
@pytest.mark.parametrize("given", [None, 5, ["Ha."]])
async def test_own_code_that_answers_with_something_else_is_told_so(given: Any) -> None:
    @durable_agent
    class Own:
        async def respond(self, turn: Turn) -> Any:
            return given

    with pytest.raises(TypeError, match="return a str, a ChatMessage or a ModelReply"):
        await hosted(Own).respond(turn())


@pytest.mark.anyio
async def test_a_turn_asks_the_model_with_its_own_messages_schema_and_options() -> None:
    asked: list[ModelRequest] = []

    def answer(request: ModelRequest) -> str:
        asked.append(request)
        return "x"

    model = ScriptedModel(answer)
    mine = turn(temperature=1, seed=1)
    mine = Turn(
        thread=mine.thread,
        request=mine.request,
        transcript=mine.transcript,
        messages=mine.messages,
        complete=model.complete,
    )
    await mine.ask_model(seed=2)
    await mine.ask_model((ChatMessage("user", "other"),))
    assert [request.messages[-1].text for request in asked] == ["you", "other"]
    assert [request.options for request in asked] == [{"temperature": 1, "seed": 2}, {"temperature": 1, "seed": 1}]
    assert asked[0].response_schema == {"type": "object"}


def test_a_turns_text_is_that_of_its_request() -> None:
    assert turn().text == "Hello\nyou"


def test_an_agent_cannot_be_its_own_tool_in_the_same_thread() -> None:
    class Thinker:
        instructions = "Think."
        tools = (as_tool("thinker", new_thread=False), as_tool("Thinker", name="ask_another", new_thread=True))

    with pytest.raises(ConfigurationError, match="would wait for itself for ever"):
        AgentRegistry().add(durable_agent(Thinker))


def using(name: str, *used: str, new_thread: bool = False) -> type:
    """An agent with others as its tools, in the thread where it is used."""

    @durable_agent(name=name)
    class Using:
        instructions = "Think."
        tools = tuple(as_tool(other, new_thread=new_thread) for other in used)

    return Using


@pytest.mark.parametrize(
    "agents",
    [
        [using("Writer", "Reviewer"), using("Reviewer", "writer")],
        [using("A", "B"), using("B", "C", "D"), using("C", "Elsewhere"), using("D", "A")],
    ],
)
def test_agents_that_would_wait_for_each_other_are_refused(agents: list[type]) -> None:
    with pytest.raises(ConfigurationError, match="would wait for each other for ever") as caught:
        AgentRegistry().add(*agents)
    assert len(caught.value.mistakes) == 1
    registry = AgentRegistry()
    registry.add(*agents[:-1])
    with pytest.raises(ConfigurationError, match="would wait for each other for ever"):
        registry.add(agents[-1])
    assert registry.names == [agent_name(each) for each in agents[:-1]]


@pytest.mark.parametrize(
    "agents",
    [
        [using("Writer", "Reviewer"), using("Reviewer", "Writer", new_thread=True)],
        [using("A", "B", "C"), using("B", "C"), using("C", "Elsewhere")],
    ],
)
def test_agents_that_use_each_other_without_a_circle_are_taken(agents: list[type]) -> None:
    assert len(AgentRegistry().add(*agents)) == len(agents)
