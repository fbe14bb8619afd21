"""What the offline model knows by itself: itself, agentmesh and NATS. Everything else it has to be given."""

WHO = (
    "I am the offline model of agentmesh. I answer by rules from the text I am given: documents, this conversation and "
    "the results of tools. I can summarise, list, look things up in it, fill a JSON schema, call tools and do sums. "
    "Configure another model in [models.default] to have one that knows more."
)

FACTS = """\
agentmesh runs supervised, durable actors for AI agents on plain NATS.
An agent in agentmesh is an actor: it has private state, an address, and handles one message at a time.
Agents in agentmesh tell events, ask requests and submit tasks, and the type of a message states its promise.
A task that agentmesh has accepted survives crashes and gets exactly one result.
NATS is a messaging system: programs publish messages on subjects, and subscribers of a subject receive them.
NATS messaging delivers at most once; JetStream, its persistence, stores messages and delivers at least once.
A queue group in NATS shares the messages of a subject among its members, so that work is balanced between them.
Request and reply in NATS use a private inbox subject for the answer.
Streams of tokens in agentmesh are stored, so that they survive a page refresh and can be replayed from any offset.
"""
