"""Exit codes: which error ends the command with which code. The only place that decides it."""

from __future__ import annotations

OK = 0
FAILED = 1
"""The asked work failed."""
USAGE = 2
"""The command line, a name or a setting is wrong; nothing was done."""
NO_BROKER = 3
NO_AGENT = 4
DEADLINE = 5
INTERRUPTED = 130


def exit_code(error: BaseException) -> int:
    """The exit code for an error that ended a command."""
    from agentmesh import errors

    table: tuple[tuple[int, tuple[type[BaseException], ...]], ...] = (
        (DEADLINE, (errors.DeadlineExceededError, errors.StreamIdleError, errors.PublishTimeoutError, TimeoutError)),
        (DEADLINE, (errors.TaskExpiredError, errors.ToolTimeoutError)),
        (NO_AGENT, (errors.NoSuchAgentError, errors.NoRespondersError)),
        (
            USAGE,
            (
                errors.UsageError,
                errors.ConfigError,
                errors.InvalidNameError,
                errors.InvalidMessageError,
                errors.NoHandlerError,
            ),
        ),
        (USAGE, (errors.DefinitionError, errors.MissingExtraError, errors.ToolArgumentsError)),
        (USAGE, (errors.PayloadTooLargeError, errors.InvalidScheduleError, errors.IdempotencyConflictError)),
        (FAILED, (errors.StreamFullError, errors.SequenceConflictError, errors.ConsumerGoneError)),
        (FAILED, (errors.JetStreamError,)),
        (NO_BROKER, (errors.BrokerError,)),
        (INTERRUPTED, (KeyboardInterrupt,)),
    )
    return next((code for code, kinds in table if isinstance(error, kinds)), FAILED)
