"""Who is to blame when workers complain of each other, and what is kept of their reports."""

import os
import subprocess
import sys

import numpy as np
import pytest
from network_faults import tells

from koopcore.learning import WorkerError
from koopcore.learning.workers.supervisor import Complaint, Report, Supervisor


def state(t, value):
    return 0.0, Report("state", t, value)


def failed(message, blamed, stamp=-1, after=0.0):
    return after, Report("failed", 9, Complaint(message, blamed, stamp))


def gathered(*workers):
    """A supervisor that waits for all of these workers to be done."""
    arguments = [w if isinstance(w, tuple) else (w,) for w in workers]
    with Supervisor(tells, arguments) as supervisor:
        supervisor.gather("done", 20.0)
    return supervisor


@pytest.mark.parametrize(
    ("workers", "message", "guilty"),
    [
        (
            ([failed("lost 1", 1, 4)], [failed("lost 0", 0, 6)], [failed("lost 1", 1, 5)]),
            "worker 0, iteration 9: lost 1",
            1,
        ),
        # One against one: whoever was heard of last the longer time ago stalled first.
        (([failed("lost 1", 1, 8)], [failed("lost 0", 0, 3)]), "lost 0", 0),
        (([failed("lost 1", 1, 3)], [failed("lost 0", 0, 8)]), "lost 1", 1),
        # A worker that says it failed itself is believed, however late it says so.
        (
            ([failed("lost 1", 1)], [failed("failed with KeyError", 1, after=0.5)]),
            "worker 1, iteration 9: failed with KeyError",
            1,
        ),
        (([failed("lost some", None)], [failed("lost 0", 0)]), "worker 1, .* lost 0", 0),
        (([failed("lost some", None)], [failed("lost some", None)]), "lost some", 0),
        # A death explains every complaint.
        (([failed("lost 2", 2)], [failed("lost 0", 0)], ([], 5)), "2 died with exit code 5", 2),
    ],
)
def test_the_guilty_worker_is_named(workers, message, guilty):
    with pytest.raises(WorkerError, match=message) as caught:
        gathered(*workers)
    assert caught.value.worker == guilty


def test_a_divergence_explains_the_complaints_of_others():
    told = [(0.4, Report("diverged", 17))]
    with pytest.raises(FloatingPointError, match="worker 1, iteration 17"):
        gathered([failed("lost 1", 1)], told, [failed("lost 1", 1)])


def test_states_of_one_iteration_are_kept_together():
    done = (0.3, Report("done", 30))
    found = gathered(
        [state(10, 1), state(20, 2), state(30, 3), done],
        [state(10, 4), state(20, 5), done],
        [state(10, 7), state(20, 8), state(30, 9), done],
    ).last_states()
    assert [(report.iteration, report.content) for report in found] == [(20, 2), (20, 5), (20, 8)]


def test_without_a_report_of_every_worker_there_is_no_state():
    done = (0.0, Report("done", 30))
    assert gathered([state(10, 1), done], [done]).last_states() == []


def test_workers_that_say_nothing_are_given_up_after_the_timeout():
    with Supervisor(tells, [([],), ([],)]) as supervisor:
        with pytest.raises(WorkerError, match=r"0\.6 s; waiting for worker 0"):
            supervisor.gather("done", 0.6)
        processes = supervisor.processes
    assert not any(process.is_alive() for process in processes)
    assert np.all([process.exitcode is not None for process in processes])


# Run by every process of a test that starts, before anything else: it hides a module, and notes
# what a fork of the fork server is born with.
BORN_WITH = """
import os, sys
sys.modules["{hidden}"] = None
def note():
    with open("born_with", "a") as file:
        file.write(" ".join(name for name, module in sys.modules.items() if module) + chr(10))
os.register_at_fork(after_in_child=note)
"""
STARTS_A_WORKER = """
from koopcore.learning.workers.supervisor import Report, Supervisor

def body(pipe):
    pipe.send(Report("done", 1))
    pipe.poll(30.0)

if __name__ == "__main__":
    with Supervisor(body, [()]) as supervisor:
        assert supervisor.gather("done", 60.0)[0].iteration == 1
"""
WANTED = {
    "koopcore.learning.workers.asynchronous": None,
    "koopcore.learning.workers.ranks": "torch",
    "koopcore._native._cpu": "koopcore._native._cpu",
}
"""What is to be preloaded -> what may be missing, so that this alone cannot be."""


@pytest.mark.parametrize("hidden", ["koopcore._native._cpu", "torch", "nothing"])
def test_what_one_installation_lacks_hinders_no_other_preload(hidden, tmp_path):
    pytest.importorskip("koopcore._native._cpu")
    (tmp_path / "sitecustomize.py").write_text(BORN_WITH.format(hidden=hidden))
    (tmp_path / "script.py").write_text(STARTS_A_WORKER)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modules = set((tmp_path / "born_with").read_text().splitlines()[0].split())
    assert WANTED.keys() & modules == {name for name, needs in WANTED.items() if needs != hidden}
