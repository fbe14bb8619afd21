"""Workflows: task handlers whose steps are decided once, however often the handler runs.

A handler that begins steps through its context (`ctx.step`, `ctx.run`, …) is a workflow; nothing has to be declared.
When its process dies, the task is delivered again and the handler runs from its beginning, but each step that has an
outcome returns it instead of being run. The outcome stands in a result slot, written by compare-and-set, whose id is
made from the task's id and the step's name.

| module     | what                                                                        |
| ---------- | --------------------------------------------------------------------------- |
| `journal`  | names and slots of steps: what was decided, and deciding                     |
| `flow`     | `Workflow`: what a handler can do: step, run, map, sleep, signal             |
| `calls`    | calling the function of a step                                               |
| `branches` | several things at a time: gather and race                                    |
| `saga`     | steps that are undone when a later one fails                                 |
| `view`     | what the steps of a task have come to, for those who look                    |
"""
