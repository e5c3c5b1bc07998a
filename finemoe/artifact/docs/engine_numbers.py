"""Numbers of the live engine, measured on the machines that `data/reference` names."""

from collections.abc import Iterator
from itertools import chain

from finemoe.artifact.docs.tables import Number, groups, items, milliseconds, percent, rows, shipped, slug, spread_of
from finemoe.artifact.pipeline.noise import FASTER, NOT_DECIDED, OUTSIDE, SLOWER, WITHIN, judged_pairs

_OVERHEAD = "reference/figures/engine_overhead_measured.csv"
_PACED = "reference/figures/paced_link_measured.csv"
_CHECKED = "reference/figures/validate_simulator_measured.csv"
_TIME = "reference/tables/engine_time_measured.csv"
_F17 = "reference/figures/f17_measured.csv"
_SYSTEMS = "reference/paced_systems_measured.csv"


def engine_numbers() -> Iterator[Number]:
    """All of them."""
    return chain(_overhead(), _paced(), _engine_time(), _overhead_of_paper(), _validation(), _paced_systems())


def _overhead() -> Iterator[Number]:
    table = shipped(_OVERHEAD)
    for one in rows(table):
        name = f"overhead_{slug(one.variant)}_{slug(one.model)}_b{one.batch_size}"
        meaning = f"decode time over eager's, every expert resident: {one.variant}, {one.model}, batch {one.batch_size}"
        yield Number(name, f"{one.ratio:.2f}", _OVERHEAD, meaning)
    halves = (table.high - table.low) / 2 / table.ratio
    yield Number("overhead_interval", spread_of(100 * halves, "%"), _OVERHEAD, "half widths of those ratios' 95 % intervals")
    yield Number("overhead_rounds", str(table.num_rounds.iloc[0]), _OVERHEAD, "rounds behind each of those ratios")
    ours = table[table.variant != "default"]
    yield Number("overhead_range", f"{ours.ratio.min():.2f} to {ours.ratio.max():.2f}", _OVERHEAD, "range of the engine's ratios")
    yield Number("overhead_machine", str(table.machine.iloc[0]), _OVERHEAD, "where it was measured")


def _paced() -> Iterator[Number]:
    table = shipped(_PACED)
    means = table.groupby(["model", "policy", "expert_memory"]).tpot_s.mean()
    for (model, policy, memory), seconds in items(means):
        name = f"paced_{slug(model)}_{slug(policy)}_{100 * memory:g}"
        meaning = f"measured TPOT over a paced link, {policy}, {100 * memory:g} % of {model}'s experts"
        yield Number(name, milliseconds(seconds), _PACED, meaning)
    ratios = means.unstack("policy")
    gains = 1 - ratios["finemoe"] / ratios["on-demand"]
    quarter = gains.xs(0.25, level="expert_memory")
    yield Number(
        "paced_gain_25", spread_of(100 * quarter, "%"), _PACED, "by how much FineMoE's TPOT is lower at 25 %, over models"
    )
    judged = judged_pairs(table, ["model", "expert_memory"], "finemoe", "on-demand")
    yield Number("paced_cells", str(len(judged)), _PACED, "cells of model and memory over the paced link")
    for verdict in (FASTER, SLOWER, NOT_DECIDED):
        count = int((judged.verdict == verdict).sum())
        yield Number(
            f"paced_{slug(verdict)}", str(count), _PACED, f"cells in which FineMoE is {verdict} against loading on demand"
        )
    for one in rows(judged):
        name = f"paced_verdict_{slug(one.model)}_{100 * one.expert_memory:g}"
        yield Number(name, one.verdict, _PACED, f"whether FineMoE is faster, {one.model} at {100 * one.expert_memory:g} %")
    yield Number("paced_load", f"{table.load_ms.iloc[0]:g} ms", _PACED, "what one expert takes on that link")


def _engine_time() -> Iterator[Number]:
    """Without the experts' arithmetic and with nothing missing."""
    table = shipped(_TIME)
    for (policy, memory), part in groups(table, "policy", "expert_memory"):
        name = f"engine_us_{slug(policy)}_{100 * memory:g}"
        meaning = f"engine's own time per layer at one token, {policy}, {100 * memory:g} % resident, over the miniatures"
        yield Number(name, spread_of(part.microseconds_per_layer, "µs"), _TIME, meaning)


def _overhead_of_paper() -> Iterator[Number]:
    table = shipped(_F17)
    yield Number(
        "f17_engine", spread_of(table.engine_ms, "ms"), _F17, "collecting context and accounting in a decode step, over models"
    )
    meaning = "the same, a layer"
    yield Number("f17_engine_per_layer", spread_of(table.engine_ms_per_layer, "ms", 1), _F17, meaning)


def _validation() -> Iterator[Number]:
    table = shipped(_CHECKED)
    errors = table.error.abs()
    yield Number("validated_cells", str(len(table)), _CHECKED, "cells in which the simulator was compared with the live engine")
    for verdict in (WITHIN, OUTSIDE, NOT_DECIDED):
        count = int((table.verdict == verdict).sum())
        yield Number(f"validated_{slug(verdict)}", str(count), _CHECKED, f"of those, cells with the verdict {verdict!r} (10 %)")
    yield Number(
        "validated_close", str(int((errors <= 0.1).sum())), _CHECKED, "of those, cells whose median error is within 10 %"
    )
    yield Number("validated_error_median", percent(errors.median()), _CHECKED, "median over cells of the error of TPOT")
    yield Number("validated_error_mean", percent(errors.mean()), _CHECKED, "mean over cells of the error of TPOT")
    yield Number("validated_error_worst", percent(errors.max()), _CHECKED, "greatest error of TPOT")
    yield Number("validated_noise_median", percent(table.noise.median()), _CHECKED, "median over cells of the noise")


def _paced_systems() -> Iterator[Number]:
    """The live engine under several systems, over FineMoE's time per token."""
    table = shipped(_SYSTEMS)
    means = table.groupby(["model", "system"]).tpot_s.mean().unstack("system")
    for system in means.columns.drop("finemoe"):
        ratios = means[system] / means["finemoe"]
        for model, ratio in items(ratios):
            name = f"live_{slug(system)}_over_finemoe_{slug(str(model))}"
            yield Number(name, f"{ratio:.2f}", _SYSTEMS, f"TPOT of {system} over FineMoE's, {model}, live over a paced link")
        text = f"{ratios.min():.2f} to {ratios.max():.2f}"
        yield Number(f"live_{slug(system)}_over_finemoe", text, _SYSTEMS, f"TPOT of {system} over FineMoE's, over the miniatures")
