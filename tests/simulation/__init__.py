"""The task protocol, simulated: the product's own code on virtual time, a model of the broker, and faults by the seed.

`loop` virtual time and processes that can be killed between any two steps · `stream`, `consumer`, `broker` the model of
JetStream · `link` a client's connection to it · `world` puts them together · `scenario` what a seed makes happen ·
`history` what happened · `checker` whether that was right · `mutants` planted bugs.

    python -m tests.simulation 17              # repeat seed 17
    python -m tests.simulation 0-1999          # many
    python -m tests.simulation 0-199 --mutant no-cas
"""
