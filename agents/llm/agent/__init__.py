"""An agent that answers with a language model, and uses tools and memory for it.

    class Helper(LLMAgent):
        "Answers questions about the handbook."

        system_prompt = "You are the helper of our team."
        tools = ("search", "calc")

| module      | what                                                                   |
| ----------- | ---------------------------------------------------------------------- |
| `declare`   | `LLMAgent`: how one is declared, and the messages it takes              |
| `loop`      | the life of an answer: ask the model, use the tools it names, ask again |
| `desks`     | the two ways of doing that: at once, or as steps of a task              |
| `toolbox`   | what the model may use: tools of executors, and its memory              |
| `spending`  | what an answer has used, and may use                                    |
| `words`     | what these tell each other                                              |
"""

from agentmesh.agents.llm.agent.declare import LLMAgent

__all__ = ["LLMAgent"]
