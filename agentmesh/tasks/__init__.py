"""Durable tasks: accepted means that it survives anything and gets exactly one result.

An accepted task is decided once: `completed`, `failed`, `cancelled`, `expired` or `dead`. Its handler runs at least
once, and may run again when a worker dies, freezes or loses contact: give `ctx.key(step)` to whatever has an effect
outside. There is no order between tasks.

A time limit is final: a handler that exceeds it is cancelled and its task decided `failed`, not tried again. So is a
deadline: what is not done by then is `expired`, whether it waits or runs.

| module     | what                                                                     |
| ---------- | ------------------------------------------------------------------------ |
| `layout`   | streams and consumers                                                    |
| `wire`     | the documents: task, result, dead letter                                 |
| `slot`     | the commit point of a task                                               |
| `client`   | submit, cancel, ask                                                      |
| `job`      | result and events of one task                                            |
| `watch`    | waiting for results                                                      |
| `batch`    | one task per item                                                        |
| `status`   | where tasks stand                                                        |
| `worker`   | takes tasks from the queues (`lanes`), keeps them alive (`pulse`)         |
| `attempt`  | the life of a task at a worker; what becomes of it (`outcome`), of its saga (`undoing`) |
| `workflow` | handlers that go on where they were: the verbs of `context` (`verbs`)      |
| `clock`    | its time limit and deadline; `giving`: giving tasks back                  |
| `seat`     | the place a handler takes, given up while it only waits                   |
| `context`  | what a handler knows and can say                                         |
| `submission` | a task as it is submitted, and what it inherits                          |
| `lineage`  | tasks end with the task that submitted them                              |
| `spending` | counting the steps of a budget                                           |
| `keys`     | what was claimed and decided under idempotency keys                      |
| `fence`    | a number that grows with every attempt                                   |
| `history`  | failed attempts and give-backs                                           |
| `dead`     | dead letters                                                             |
| `dispatch` | from the door to the queue of an agent                                   |
| `serving`  | working off what a consumer brings: dispatcher and mover                 |
| `schedules`| delayed and repeating tasks; `when` checks the times                     |
| `mover`    | from what is due to the queue of an agent                                |
| `stuck`    | finds and buries what no consumer will deliver                           |
| `lagging`  | moves consumers away from a copy of a queue that does not catch up       |
"""

from agentmesh.tasks.batch import Batch, Finished
from agentmesh.tasks.client import TaskClient
from agentmesh.tasks.context import TaskContext
from agentmesh.tasks.dead import bury_message, keep_event
from agentmesh.tasks.dispatch import Dispatcher
from agentmesh.tasks.job import Chunk, Job, JobEvent, Progress, Restarted
from agentmesh.tasks.lagging import LaggingCopies
from agentmesh.tasks.mover import Mover
from agentmesh.tasks.schedules import Schedule, ScheduleInfo, Schedules
from agentmesh.tasks.status import TaskStatus
from agentmesh.tasks.stuck import StuckSweep
from agentmesh.tasks.wire import DeadBody, Failure, ResultBody
from agentmesh.tasks.worker import Running, TaskWorker
from agentmesh.tasks.workflow.saga import Saga
from agentmesh.tasks.workflow.view import Step

__all__ = [
    "Batch",
    "Chunk",
    "DeadBody",
    "Dispatcher",
    "Failure",
    "Finished",
    "Job",
    "JobEvent",
    "LaggingCopies",
    "Mover",
    "Progress",
    "Restarted",
    "ResultBody",
    "Running",
    "Saga",
    "Schedule",
    "ScheduleInfo",
    "Schedules",
    "Step",
    "StuckSweep",
    "TaskClient",
    "TaskContext",
    "TaskStatus",
    "TaskWorker",
    "bury_message",
    "keep_event",
]
