"""How many instructions does the endpoint job take? A count repeats exactly where a time does not.

Workload W1 (10,000 groups of 65, n = 16, horizon 100) or another one, float32, native_cpu, one
thread, counted by callgrind. The process runs the job once and three times; half of the difference
is one job, free of what starting Python costs. valgrind 3.19 knows no AVX-512, so the AVX2 code is
counted; what a change of the algorithm saves there, it saves in the other instruction sets too.

    python benchmarks/instructions.py                # prints JSON
    python benchmarks/instructions.py --groups 1000  # a tenth of the work
    python benchmarks/instructions.py --workload W3 --groups 2000
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import koopcore as kc
from koopcore.lab.bench.study import forget
from koopcore.lab.studies.workloads import HORIZON, WORKLOADS, bound, decays, error

RUNS = (1, 3)
ISA = "avx2"


def job(name: str, groups: int, runs: int) -> None:
    """The job, ``runs`` times, in the process that callgrind watches; its result is checked."""
    load = WORKLOADS[name]._replace(groups=groups)
    part = load.partition()
    data = decays(load.n, part.size)
    for _ in range(runs):
        out = kc.fit(data.rows, part, backend="native_cpu", horizon=HORIZON).predict(HORIZON)
    wrong_by, allowed = error(data, part, out, HORIZON), bound(data, part, HORIZON)
    forget()
    if not wrong_by <= allowed:
        sys.exit(f"wrong: error {wrong_by:.3g}, at most {allowed:.3g} is accepted; no count")


def counted(name: str, groups: int, runs: int) -> int:
    """Instructions of a whole process that does the job ``runs`` times."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        sys.exit("valgrind is not installed (on Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                valgrind,
                "--tool=callgrind",
                f"--callgrind-out-file={Path(folder) / 'out'}",
                sys.executable,
                __file__,
                "--workload",
                name,
                "--groups",
                str(groups),
                "--job",
                str(runs),
            ],
            env=os.environ
            | {
                "KOOPCORE_ISA": ISA,
                "KOOPCORE_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONHASHSEED": "0",
            },
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return collected(done.stderr)


def collected(report: str) -> int:
    """The total of callgrind's last lines: ``Collected : 123``."""
    total = re.search(r"Collected\s*:\s*(\d+)", report)
    if total is None:
        raise ValueError("callgrind reports no total")
    return int(total[1])


def result(name: str, groups: int) -> dict[str, object]:
    """One job's instructions, per parameter and snapshot too, and what was counted."""
    load = WORKLOADS[name]._replace(groups=groups)
    few, many = (counted(name, groups, runs) for runs in RUNS)
    each = (many - few) / (RUNS[1] - RUNS[0])
    return {
        "command": f"python benchmarks/instructions.py --workload {name} --groups {groups}",
        "groups": groups if load.fan_in else 1,
        "parameters_per_group": load.m,
        "snapshots": load.n,
        "horizon": HORIZON,
        "instruction_set": ISA,
        "threads": 1,
        "instructions": round(each),
        "instructions_per_element": each / (load.partition().size * load.n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Instructions of the endpoint job.")
    parser.add_argument("--workload", choices=WORKLOADS, default="W1")
    parser.add_argument("--groups", type=int, help="or parameters, of one group; as it has")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    groups = arguments.groups or WORKLOADS[arguments.workload].groups
    if groups < 10:
        parser.error(f"--groups is {groups}; give 10 or more")
    if arguments.job:
        job(arguments.workload, groups, arguments.job)
    else:
        print(json.dumps(result(arguments.workload, groups), indent=1))


if __name__ == "__main__":
    main()
