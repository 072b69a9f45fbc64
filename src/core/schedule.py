"""How long jobs take on so many GPUs: at least, and by a plain list schedule. Called by `plan`; knows no Snakemake.

A list schedule starts whatever is ready and fits, the job with the longest way to the end first. It is at most twice the best
possible where each job takes one GPU (Graham 1966). Waiting in a cluster's queue is not in it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One job of a schedule.

    Attributes:
        seconds: that it runs.
        gpus: that it holds, 0 for none.
        after: names of the tasks that must be finished first; others than those scheduled count as finished.
    """

    seconds: float
    gpus: int
    after: Sequence[str]


def longest_chain(tasks: Mapping[str, Task]) -> list[str]:
    """The tasks that wait for each other and together take longest, in their order; [] for no tasks."""
    to_end, (_, followers) = _seconds_to_end(tasks), _dependencies(tasks)
    chain: list[str] = []
    choice: Sequence[str] = list(tasks)
    while choice:
        chain.append(max(choice, key=lambda name: to_end[name]))
        choice = followers[chain[-1]]
    return chain


def least_seconds(tasks: Mapping[str, Task], gpus: int) -> float:
    """No schedule is shorter: the longest chain, or all work spread evenly."""
    work = sum(task.seconds * task.gpus for task in tasks.values()) / gpus
    return max(work, max(_seconds_to_end(tasks).values(), default=0.0))


def schedule_seconds(tasks: Mapping[str, Task], gpus: int) -> float:
    """End of the last task of a list schedule.

    Args:
        tasks: name -> task, none with more GPUs than there are.
        gpus: at hand.
    """
    to_end = _seconds_to_end(tasks)
    waiting, followers = _dependencies(tasks)
    ready = [(-to_end[name], name) for name in tasks if not waiting[name]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now, free = 0.0, gpus
    while ready or running:
        kept = []
        while ready and (free or tasks[ready[0][1]].gpus == 0):
            entry = heapq.heappop(ready)
            task = tasks[entry[1]]
            if task.gpus > free:
                kept.append(entry)
                continue
            free -= task.gpus
            heapq.heappush(running, (now + task.seconds, entry[1]))
        for entry in kept:
            heapq.heappush(ready, entry)
        now, name = heapq.heappop(running)
        free += tasks[name].gpus
        for follower in followers[name]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, (-to_end[follower], follower))
    return now


def _seconds_to_end(tasks: Mapping[str, Task]) -> dict[str, float]:
    """Name -> seconds from a task's start to the end of the longest chain of tasks that wait for it."""
    waiting, followers = _dependencies(tasks)
    order: list[str] = []
    ready = [name for name in tasks if not waiting[name]]
    while ready:
        name = ready.pop()
        order.append(name)
        for follower in followers[name]:
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    to_end: dict[str, float] = {}
    for name in reversed(order):
        to_end[name] = tasks[name].seconds + max((to_end[follower] for follower in followers[name]), default=0.0)
    return to_end


def _dependencies(tasks: Mapping[str, Task]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many tasks each waits for, and which ones wait for it."""
    followers: dict[str, list[str]] = {name: [] for name in tasks}
    waiting = dict.fromkeys(tasks, 0)
    for name, task in tasks.items():
        for before in task.after:
            if before in followers:
                followers[before].append(name)
                waiting[name] += 1
    return waiting, followers
