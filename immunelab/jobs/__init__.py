"""Runs as processes: start, queue, stop, resume, delete, and find out what became of them. No torch, no broker.

A worker is a detached process that carries a list of runs, one after the other. While it lives, it alone writes their
status; everyone else asks through files. What happens to the app, or to another worker, does not touch it.
"""

from immunelab.jobs.background import CommandState, command_state, start_command
from immunelab.jobs.control import (
    delete,
    drop_checkpoints,
    duplicate,
    plan,
    reconcile,
    resume,
    stop,
    submit,
)
from immunelab.jobs.preflight import check
from immunelab.jobs.queue import devices, resolve_device
from immunelab.jobs.worker import work

__all__ = [
    "CommandState",
    "check",
    "command_state",
    "delete",
    "devices",
    "drop_checkpoints",
    "duplicate",
    "plan",
    "reconcile",
    "resolve_device",
    "resume",
    "start_command",
    "stop",
    "submit",
    "work",
]
