"""How does the cost of one endpoint grow with each of its dimensions, all else equal?

Six studies of the same job on float32 snapshots: the number of parameters, of groups, the size of
the groups, the window, the horizon, and the partition of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import koopcore as kc
from koopcore.lab.bench import machine, plots
from koopcore.lab.bench.powers import powers_of
from koopcore.lab.bench.study import Case, Claim, Job, Row, Size, Study, Summary, series, spread
from koopcore.lab.studies.workloads import (
    FAST_RATES,
    HORIZON,
    decays,
    endpoint_job,
    equal_groups,
    groups_of,
)

N = 16
LINEAR = 0.05  # an exponent may be so far from one


def _ns_a_parameter(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.case}: {1e9 * row.seconds / row.figures['parameters']:.2f} ns a parameter"
        for row in rows
        if row.seconds
    ]


def _linear(rows: Sequence[Row], race: str, text: str) -> Summary:
    """The exponent of the race's cost above a fixed one, and that it is one."""
    powers = powers_of(f"fit and predict, {race}", *series(rows, race))
    distances = [abs(power.exponent - 1) for power in powers.values()]
    return Summary(powers, claims=[Claim(text, distance, LINEAR, True) for distance in distances])


# P: n = 8, groups of 100; linear above the cost of a call.
PARAMETERS_N, PARAMETERS_M = 8, 100
PARAMETERS = {
    Size.full: [10**3, 10**4, 10**5, 10**6, 10**7, 10**8],
    Size.quick: [10**3, 10**4, 10**5, 10**6, 4 * 10**6],
    Size.once: [10**3, 2 * 10**3, 5 * 10**3, 10**4, 10**5],
}
BYTES = 4 * (2 * PARAMETERS_N + 8)  # a parameter: two windows, what made them, the endpoint


def _parameters_cases(size: Size) -> list[Case]:
    """One race of all sizes that fit in half of the memory that is free."""
    fitting = [p for p in PARAMETERS[size] if p * BYTES < machine.memory()[1] / 2]
    return [Case("P", f"P = {p:.0e}", p, max(fitting)) for p in fitting]


def _build_parameters(case: Case) -> Job:
    size, largest = int(case.x), int(case.options)
    data = decays(PARAMETERS_N, largest)
    if size < largest:
        part = slice(0, size)
        data = data._replace(
            rows=data.rows[:, part].copy(),
            fixed=data.fixed[part],
            amplitudes=data.amplitudes[:, part],
        )
    return endpoint_job(data, equal_groups(size // PARAMETERS_M, PARAMETERS_M))


def _parameters_summary(rows: Sequence[Row]) -> Summary:
    summary = _linear(rows, "P", "|exponent of P - 1|")
    summary.notes.extend(_ns_a_parameter(rows))
    return summary


# Groups of 65 (a unit of 64 inputs), n = 16; linear above the cost of a call.
GROUPS_M = 65
GROUPS = {
    Size.full: [1, 10, 100, 1000, 10_000, 100_000],
    Size.quick: [1, 10, 100, 1000, 10_000],
    Size.once: [1, 10, 30, 100, 300],
}


def _groups_cases(size: Size) -> list[Case]:
    return [
        Case("groups", f"{count} groups", count, (N, count, GROUPS_M)) for count in GROUPS[size]
    ]


# Groups of m parameters, equally many in all. Those with fewer parameters than columns (m < 14)
# are fitted on the feature side, m by m; the others share the cost of one small solve per group,
# which matters less the larger m is.
GROUP_SIZES = (1, 2, 4, 8, 16, 32, 65, 128, 256, 1024, 4096, 10_000)
GROUP_SIZE_TOTAL = {Size.full: 2 * 10**6, Size.quick: 3 * 10**5, Size.once: 2 * 10**4}


def _group_size_cases(size: Size) -> list[Case]:
    sizes = GROUP_SIZES if size is Size.full else GROUP_SIZES[::3]
    total = GROUP_SIZE_TOTAL[size]
    return [Case("m", f"m = {m}", m, (N, max(total // m, 1), m)) for m in sizes]


# A million parameters in groups of 256. Reading is linear in n and the Gram matrices take P n(n+1)
# flops: between linear, where memory is the limit, and square.
WINDOWS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
WINDOW_M = 256
WINDOW_GROUPS = {Size.full: 4000, Size.quick: 400, Size.once: 40}


def _window_cases(size: Size) -> list[Case]:
    windows = WINDOWS if size is Size.full else WINDOWS[::2]
    return [Case("n", f"n = {n}", n, (n, WINDOW_GROUPS[size], WINDOW_M)) for n in windows]


def _window_summary(rows: Sequence[Row]) -> Summary:
    return Summary(powers_of("fit and predict, n", *series(rows, "n"), fixed=False))


def _build_equal_groups(case: Case) -> Job:
    """options: (n, groups, m)."""
    n, groups, m = case.options
    return endpoint_job(decays(n, groups * m), equal_groups(groups, m))


# The recurrence takes T steps per group up to T = 1,024 and log T squarings of a polynomial beyond;
# it never touches the snapshots, so one large group should not notice it. The decays are fast
# enough that an operator fitted to float32 has no eigenvalue above one, whose powers would have no
# bound.
HORIZONS = (1, 10, 100, 1000, 10_000, 100_000)
HORIZON_LOADS = {"groups of 65": 65, "groups of 256": 256, "one group": 0}
HORIZON_TOTAL = {Size.full: 10**6, Size.quick: 2 * 10**5, Size.once: 10**4}


def _horizon_cases(size: Size) -> list[Case]:
    return [
        Case(race, f"T = {t}", t, (m, HORIZON_TOTAL[size]))
        for race, m in HORIZON_LOADS.items()
        for t in HORIZONS
    ]


def _build_horizon(case: Case) -> Job:
    part = groups_of(*case.options)
    return endpoint_job(decays(N, part.size, FAST_RATES), part, int(case.x))


def _horizon_summary(rows: Sequence[Row]) -> Summary:
    slowest = {race: spread(series(rows, race)[1], len(HORIZONS)) for race in HORIZON_LOADS}
    claim = Claim("one group: slowest / fastest horizon", slowest.pop("one group"), 1.2, True)
    notes = [f"{race}: slowest / fastest horizon = {ratio:.2f}" for race, ratio in slowest.items()]
    return Summary(claims=[claim], notes=notes)


# The parameters of a network of three layers, 2.5 million, grouped in five ways. A prediction of
# single weights is cheap and rarely right; it is left out of the claim, as are groups too small
# for a fit on the snapshot side.
SHAPES = {
    Size.full: [(1000, 784, True), (1000, 1000, True), (700, 1000, True)],
    Size.quick: [(300, 784, True), (300, 300, True), (300, 300, True)],
    Size.once: [(30, 78, True), (30, 30, True), (30, 30, True)],
}
PARTITIONS: dict[str, Callable[[kc.Layout], kc.Partition]] = {
    "network": kc.Partition.network,
    "layers": kc.Partition.layers,
    "nodes": kc.Partition.nodes,
    "quasi-nodes of 100": lambda layout: kc.Partition.quasi_nodes(layout, 100),
    "weights": kc.Partition.weights,
}


def _partitions_cases(size: Size) -> list[Case]:
    return [Case("partitions", name, options=size) for name in PARTITIONS]


def _build_partition(case: Case) -> Job:
    layout = kc.Layout.from_shapes(SHAPES[case.options])
    return endpoint_job(decays(N, layout.size), PARTITIONS[case.name](layout))


def _partitions_summary(rows: Sequence[Row]) -> Summary:
    seconds = {row.case: row.seconds for row in rows}
    whole = seconds.get("network") or float("nan")
    names = [name for name in PARTITIONS if name != "weights"]
    slowest = spread([seconds.get(name) for name in names], len(names))
    return Summary(
        claims=[Claim("slowest / fastest partition, weights apart", slowest, 1.3, True)],
        notes=[f"{name}: {s / whole:.2f} times network" for name, s in seconds.items() if s],
    )


STUDIES = (
    Study(
        "parameters",
        "How does the cost of fit and predict grow with the number of parameters P?",
        "parameters",
        _parameters_cases,
        _build_parameters,
        _parameters_summary,
        plots.power_law,
    ),
    Study(
        "groups",
        "How does the cost grow with the number of groups?",
        f"groups of {GROUPS_M}",
        _groups_cases,
        _build_equal_groups,
        lambda rows: _linear(rows, "groups", "|exponent of the number of groups - 1|"),
        plots.power_law,
    ),
    Study(
        "group-size",
        "How does the cost depend on the group size m, for equally many parameters?",
        "parameters per group",
        _group_size_cases,
        _build_equal_groups,
        lambda rows: Summary(notes=_ns_a_parameter(rows)),
        plots.connected,
    ),
    Study(
        "window",
        "How does the cost grow with the window n?",
        "snapshots per fit",
        _window_cases,
        _build_equal_groups,
        _window_summary,
        partial(plots.power_law, fixed=False),
    ),
    Study(
        "horizon",
        f"How does the cost of an endpoint depend on the horizon T ({HORIZON} elsewhere)?",
        "horizon T",
        _horizon_cases,
        _build_horizon,
        _horizon_summary,
        plots.connected,
    ),
    Study(
        "partitions",
        "What does the partition cost, on equal parameters?",
        "",
        _partitions_cases,
        _build_partition,
        _partitions_summary,
        plots.time_bars,
    ),
)
