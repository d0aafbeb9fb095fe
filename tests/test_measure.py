"""Timing with an injected clock, and the coverage of every interval; nothing here asserts a real time."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.measure import (
    Interval,
    Samples,
    fingerprint,
    interleave,
    machine,
    median_ms,
    meets,
    needed_samples,
    paired_accuracy,
    paired_scores,
    quantile_ms,
    ratio,
    settle,
    verdict,
)
from edgecompile.measure.machine import processor
from edgecompile.measure.timing import order

ROUNDS = 30


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """What is collected between rounds is this test's, not what every library that is loaded by now holds."""
    gc.freeze()
    yield
    gc.unfreeze()


class Laboratory:
    """A clock that only the callables move, and the log of who was called."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[str] = []
        self.timed: list[str] = []
        self.collecting: list[bool] = []

    def clock(self) -> int:
        self.timed.append("tick")
        return self.now_ns

    def call(self, name: str, cost_ns: Callable[[], float]) -> Callable[[], object]:
        def run() -> None:
            self.log.append(name)
            self.timed.append(name)
            self.collecting.append(gc.isenabled())
            self.now_ns += round(cost_ns())

        return run


def deduplicated(names: list[str]) -> str:
    return "".join(name for i, name in enumerate(names) if i == 0 or names[i - 1] != name)


# --- timing


def test_rounds_are_blocks_of_abba() -> None:
    lab = Laboratory()
    calls = {name: lab.call(name, lambda: 1e6) for name in "AB"}
    lab.log.clear()
    marks: list[int] = []
    interleave(calls, rounds=40, slot_s=0.003, progress=lambda *_: marks.append(len(lab.log)), clock=lab.clock)
    rounds = [lab.log[start:end] for start, end in pairwise(marks)]
    slots = [deduplicated(names) for names in rounds]
    assert set(slots) == {"AB", "BA"}
    first = order(["A", "B"], 0, seed=0)
    for i, slot in enumerate(slots, start=1):  # the first mark ends round 0
        assert slot == "".join(order(["A", "B"], i, seed=0))
    for block in range(1, 19):
        assert slots[2 * block - 1] == slots[2 * block][::-1]  # rounds 2b and 2b + 1
    assert sorted(first) == ["A", "B"]


@given(st.lists(st.text(), min_size=1, max_size=6, unique=True), st.integers(0, 100), st.integers(0, 9))
def test_every_pair_of_rounds_is_a_palindrome(names: list[str], block: int, seed: int) -> None:
    one, two = order(names, 2 * block, seed), order(names, 2 * block + 1, seed)
    assert one == two[::-1]
    assert sorted(one) == sorted(names)
    assert one == order(names, 2 * block, seed)


def test_a_linear_drift_cancels() -> None:
    lab = Laboratory()
    calls = {name: lab.call(name, lambda: 1e6 + lab.now_ns * 1e-2) for name in ("slowing", "twin")}
    samples = interleave(calls, rounds=ROUNDS, slot_s=0.003, clock=lab.clock)
    first = np.median(samples["twin"].rounds[0])
    last = np.median(samples["twin"].rounds[-1])
    assert last > 5 * first
    found = ratio(samples["slowing"], samples["twin"])
    assert found.low < 1 < found.high
    assert found.value == pytest.approx(1, abs=0.01)


def test_samples_are_the_true_times_and_others_do_not_interfere() -> None:
    lab = Laboratory()
    costs = {"tiny": 700.0, "small": 5_000.0, "large": 3_000_000.0}
    calls = {name: lab.call(name, partial(float, cost)) for name, cost in costs.items()}
    samples = interleave(calls, rounds=8, slot_s=0.004, clock=lab.clock)
    for name, cost in costs.items():
        assert samples[name].raw() == pytest.approx([cost * 1e-9] * len(samples[name].raw()))
        assert len(samples[name].rounds) == 8
        assert samples[name].calls_per_sample == math.ceil(50_000 / 700)
    assert {len(samples) for samples in samples["large"].rounds} == {3}
    assert {len(samples) for samples in samples["tiny"].rounds} == {round(0.004 / (72 * 700e-9))}


def test_single_calls_on_request() -> None:
    lab = Laboratory()
    samples = interleave({"a": lab.call("a", lambda: 700)}, rounds=1, sample_s=0, least=7, slot_s=0, clock=lab.clock)
    assert samples["a"] == Samples(((700e-9,) * 7,), 1) or samples["a"].rounds[0] == pytest.approx([700e-9] * 7)
    assert samples["a"].calls_per_sample == 1


def test_each_slot_begins_with_an_untimed_call() -> None:
    lab = Laboratory()
    cold = {"a": True, "b": True}

    def cost(name: str, other: str) -> Callable[[], float]:
        def ns() -> float:
            taken = 9e6 if cold[name] else 1e6
            cold[name], cold[other] = False, True
            return taken

        return ns

    calls = {"a": lab.call("a", cost("a", "b")), "b": lab.call("b", cost("b", "a"))}
    samples = interleave(calls, rounds=10, slot_s=0.005, clock=lab.clock)
    assert set(np.round(samples["a"].raw(), 9)) == {1e-3}
    assert set(np.round(samples["b"].raw(), 9)) == {1e-3}


def test_nothing_but_the_calls_lies_between_two_readings_of_the_clock() -> None:
    lab = Laboratory()
    interleave({"a": lab.call("a", lambda: 20_000)}, rounds=2, slot_s=0.0002, clock=lab.clock)
    text = "".join("." if event == "tick" else event for event in lab.timed)
    slot = "a" + 3 * ".aaa."  # one untimed call, then three samples of three calls
    assert text.endswith(2 * slot)


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_collection_while_timing_and_its_state_comes_back(enabled: bool) -> None:
    lab = Laboratory()
    (gc.enable if enabled else gc.disable)()
    try:
        interleave({"a": lab.call("a", lambda: 1e6)}, rounds=2, clock=lab.clock)
        assert gc.isenabled() == enabled
        assert not any(lab.collecting)

        def broken() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            interleave({"a": broken}, clock=lab.clock)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_progress_counts_rounds() -> None:
    lab = Laboratory()
    seen: list[tuple[int, int]] = []
    interleave({"a": lab.call("a", lambda: 1e6)}, 3, progress=lambda *pair: seen.append(pair), clock=lab.clock)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_clock_that_stands_still_is_survived() -> None:
    samples = interleave({"a": lambda: None}, rounds=1, slot_s=1e-7, clock=lambda: 0)
    assert set(samples["a"].raw()) == {0.0}


def test_the_real_clock() -> None:
    samples = interleave({"a": lambda: sum(range(100)), "b": lambda: None}, rounds=8, slot_s=0.0005)
    assert all(seconds > 0 for name in samples for seconds in samples[name].raw())
    assert median_ms(samples["a"]).low > 0


def test_settle_doubles_until_there_is_an_answer_and_keeps_every_sample() -> None:
    lab = Laboratory()
    looks: list[int] = []

    def ask(samples: object) -> str:
        looks.append(len(samples["a"].rounds))  # type: ignore[index]
        return "pass" if looks[-1] >= 32 else "inconclusive"

    calls = {"a": lab.call("a", lambda: 1e6), "b": lab.call("b", lambda: 1e6)}
    marks: list[tuple[int, int]] = []
    starts: list[int] = []

    def progress(done: int, total: int) -> None:
        marks.append((done, total))
        starts.append(len(lab.log))

    samples, answer = settle(calls, ask, rounds=8, cap=100, progress=progress, clock=lab.clock)
    assert marks == [(i, 8 if i <= 8 else 16 if i <= 16 else 32) for i in range(1, 33)]
    slots = [deduplicated(lab.log[start:end]) for start, end in pairwise(starts)]
    assert slots == ["".join(order(["a", "b"], i, seed=0)) for i in range(1, 32)]
    assert (looks, answer) == ([8, 16, 32], "pass")
    assert samples == interleave(calls, rounds=32, clock=lab.clock)
    looks.clear()
    samples, answer = settle(calls, ask, rounds=8, cap=20, clock=lab.clock)
    assert (looks, answer) == ([8, 16, 20], "inconclusive")
    looks.clear()
    settle(calls, ask, rounds=50, cap=20, clock=lab.clock)
    assert looks == [20]


def test_long_calls_have_fewer_rounds_and_none_that_are_not_timed() -> None:
    lab = Laboratory()
    calls = {"long": lab.call("long", lambda: 2e8), "short": lab.call("short", lambda: 1e6)}
    samples, _ = settle(calls, lambda _: "pass", rounds=16, least=1, enough_s=1.0, clock=lab.clock)
    assert len(samples["long"].rounds) == 8
    assert lab.log.count("long") == 3 + 8  # to see how long it takes, then one a round
    assert lab.log.count("short") == 22 + 8 * 21
    samples, _ = settle(calls, lambda _: "pass", rounds=16, least=1, enough_s=2.2, clock=lab.clock)
    assert len(samples["long"].rounds) == 10
    samples, _ = settle(calls, lambda _: "pass", rounds=16, least=1, clock=lab.clock)
    assert len(samples["long"].rounds) == 16


# --- statistics on synthetic samples: 1 % noise on each sample, rounds that drift for both, outliers


def synthetic(seed: int, slowdown: float = 1.0, rounds: int = ROUNDS) -> tuple[Samples, Samples]:
    """Candidate and baseline around 1 ms: lognormal noise, common drift and bad rounds, outliers."""
    rng = np.random.default_rng(seed)
    common = 1e-3 * np.exp(0.1 * np.sin(np.arange(rounds) / 5) + 0.3 * (rng.random(rounds) < 0.05))

    def one(scale: float) -> Samples:
        own = np.exp(rng.normal(0, 0.01, rounds))  # what hits a whole slot of one of them
        noise = np.exp(rng.normal(0, 0.01, (rounds, 10)) + 0.5 * (rng.random((rounds, 10)) < 0.02))
        seconds = scale * (common * own)[:, None] * noise
        return Samples(tuple(tuple(float(x) for x in row) for row in seconds))

    return one(slowdown), one(1.0)


def test_a_model_is_not_faster_than_itself() -> None:
    verdicts = [verdict(ratio(*synthetic(seed))) for seed in range(200)]
    assert verdicts.count("faster") + verdicts.count("slower") <= 2
    assert verdicts.count("same") >= 190


@pytest.mark.slow
def test_five_percent_is_found() -> None:
    slower = [verdict(ratio(*synthetic(seed, 1.05))) for seed in range(200)]
    faster = [verdict(ratio(*synthetic(seed, 0.95))) for seed in range(200)]
    assert slower.count("slower") >= 190
    assert faster.count("faster") >= 190
    assert "faster" not in slower
    assert "slower" not in faster


def test_more_rounds_make_the_verdict_sharper() -> None:
    widths = []
    for rounds in (30, 120):
        intervals = [ratio(*synthetic(seed, rounds=rounds)) for seed in range(40)]
        widths.append(np.mean([interval.high - interval.low for interval in intervals]))
    assert widths[1] < 0.6 * widths[0]


@pytest.mark.parametrize("rounds", [12, 30])
def test_coverage_of_the_ratio(rounds: int) -> None:
    intervals = [ratio(*synthetic(1000 + seed, 1.1, rounds)) for seed in range(400)]
    covered = np.mean([interval.low <= 1.1 <= interval.high for interval in intervals])
    assert covered >= 0.97


def test_coverage_of_the_median() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        rounds = 2e-3 * np.exp(rng.normal(0, 0.02, ROUNDS))
        interval = median_ms(Samples(tuple((x, x, x) for x in rounds.tolist())))
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= 2.0 <= interval.high
    assert hits >= 0.97 * 400


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_coverage_of_quantiles(q: float) -> None:
    rng = np.random.default_rng(0)
    truth = -math.log(1 - q)  # of the exponential distribution, in ms
    hits = 0
    for _ in range(400):
        interval = quantile_ms(Samples((tuple(rng.exponential(1e-3, 1000).tolist()),)), q)
        assert interval is not None
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= truth <= interval.high
    assert hits >= 0.98 * 400


def test_quantiles_say_what_they_need() -> None:
    assert [needed_samples(q) for q in (0.5, 0.99, 0.999)] == [1000, 1000, 5296]
    assert quantile_ms(Samples(((1e-3,) * 999,)), 0.99) is None
    assert quantile_ms(Samples(((1e-3,) * 500, (1e-3,) * 500)), 0.99) == Interval(1.0, 1.0, 1.0)
    assert quantile_ms(Samples(((1e-3,) * 5295,)), 0.999) is None
    ordered = quantile_ms(Samples((tuple(i * 1e-3 for i in range(1, 5297)),)), 0.999)
    assert ordered is not None
    assert ordered.high == pytest.approx(5296)  # just enough samples: the largest is the bound
    with pytest.raises(ValueError, match="time them with sample_s=0, not 8 calls a sample"):
        quantile_ms(Samples(((1e-3,) * 2000,), calls_per_sample=8), 0.99)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_quantile_limits_are_the_tightest_that_the_binomial_allows(q: float) -> None:
    n = 1000
    interval = quantile_ms(Samples((tuple(i * 1e-3 for i in range(1, n + 1)),)), q)  # the i-th smallest is i ms
    assert interval is not None
    below = np.cumsum([math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)])

    def too_low(rank: int) -> float:  # P(the rank-th smallest lies above the quantile)
        return float(below[rank - 1])

    def too_high(rank: int) -> float:  # P(it lies below)
        return float(1 - below[rank - 1])

    low, high = round(interval.low), round(interval.high)
    assert too_low(low) <= 0.005 < too_low(low + 1)
    assert too_high(high) <= 0.005 < too_high(high - 1)


def test_intervals_are_the_same_for_the_same_samples() -> None:
    assert ratio(*synthetic(3)) == ratio(*synthetic(3))
    assert median_ms(synthetic(3)[0]) == median_ms(synthetic(3)[0])


def test_ratio_is_antisymmetric() -> None:
    candidate, baseline = synthetic(5, 1.3)
    there, back = ratio(candidate, baseline), ratio(baseline, candidate)
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high, rel=2e-3)


def test_rounds_that_do_not_belong_together_or_are_too_few() -> None:
    with pytest.raises(ValueError, match="not the same rounds: 30 and 20"):
        ratio(synthetic(0)[0], synthetic(0, rounds=20)[1])
    with pytest.raises(ValueError, match="a 99 % interval needs at least 8 rounds, got 7"):
        median_ms(synthetic(0, rounds=7)[0])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.90, 0.97, "faster"),
        (0.90, 0.99, "inconclusive"),
        (0.985, 1.015, "same"),
        (0.97, 1.0, "inconclusive"),
        (0.9, 1.1, "inconclusive"),
        (1.01, 1.03, "inconclusive"),
        (1.03, 1.05, "slower"),
    ],
)
def test_verdicts(low: float, high: float, said: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high)) == said


def test_verdict_takes_another_smallest_effect() -> None:
    assert verdict(Interval(1.04, 1.03, 1.05), min_effect=0.1) == "same"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(3, 4, "pass"), (4, 5, "inconclusive"), (3, 5, "inconclusive"), (4.1, 5, "miss")],
)
def test_a_limit_is_kept_by_the_whole_interval(low: float, high: float, answer: str) -> None:
    assert meets(Interval((low + high) / 2, low, high), 4) == answer


# --- accuracy


def vectors(n: int, lost: int, gained: int, both: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of teacher and candidate on n samples."""
    teacher, candidate = np.zeros(n, bool), np.zeros(n, bool)
    teacher[:lost] = True
    candidate[lost : lost + gained] = True
    teacher[n - both :] = candidate[n - both :] = True
    return teacher, candidate


def outcomes(n: int, lost_p: float, gained_p: float) -> Iterator[tuple[int, int, float]]:
    """Every (lost, gained) of any weight with its multinomial probability."""
    kept = math.log1p(-lost_p - gained_p)
    for lost, gained in product(range(min(n, 45) + 1), repeat=2):
        if lost + gained > n or (lost and not lost_p) or (gained and not gained_p):
            continue
        ways = math.lgamma(n + 1) - sum(math.lgamma(k + 1) for k in (lost, gained, n - lost - gained))
        parts = (lost * math.log(lost_p) if lost else 0) + (gained * math.log(gained_p) if gained else 0)
        weight = math.exp(ways + parts + (n - lost - gained) * kept)
        if weight > 1e-7:
            yield lost, gained, weight


@pytest.mark.parametrize("n", [20, 50, 100, 300])
def test_exact_coverage_of_the_paired_drop(n: int) -> None:
    """Not simulated: every outcome of every cell of the grid, with its probability."""
    drops = {}
    for lost_p, gained_p in product((0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.08), (0, 0.002, 0.01, 0.02, 0.05)):
        if n * (lost_p + gained_p) > 12:
            continue
        truth = 100 * (lost_p - gained_p)
        inside = bounded = 0.0
        for lost, gained, weight in outcomes(n, lost_p, gained_p):
            if (lost, gained) not in drops:
                drops[lost, gained] = paired_accuracy(*vectors(n, lost, gained))
            drop = drops[lost, gained]
            inside += weight * (drop.low - 1e-9 <= truth <= drop.high + 1e-9)
            bounded += weight * (truth <= drop.bound_pp + 1e-9)
        assert inside >= 0.93, (lost_p, gained_p)
        assert bounded >= 0.95 - 1e-4, (lost_p, gained_p)


def test_what_the_number_of_samples_can_certify() -> None:
    def identical(n: int) -> tuple[np.ndarray, np.ndarray]:
        return vectors(n, 0, 0, both=n // 2)

    assert not paired_accuracy(*identical(20)).certifies(1.0)
    assert not paired_accuracy(*identical(298)).certifies(1.0)
    assert paired_accuracy(*identical(299)).certifies(1.0)
    few, many = paired_accuracy(*identical(20)), paired_accuracy(*identical(300))
    assert few.bound_pp == pytest.approx(100 * (1 - 0.05 ** (1 / 20)))
    assert many.bound_pp == pytest.approx(100 * (1 - 0.05 ** (1 / 300)))  # 0.99: "three in n", exactly
    assert many.value_pp == 0
    assert many.low == pytest.approx(-many.high)
    assert many.high == pytest.approx(100 * 1.959964**2 / (300 + 1.959964**2), rel=1e-5)


@given(st.integers(1, 60), st.integers(0, 12), st.integers(0, 12))
def test_the_interval_excludes_zero_exactly_when_mcnemar_rejects(agree: int, lost: int, gained: int) -> None:
    drop = paired_accuracy(*vectors(agree + lost + gained, lost, gained))
    rejects = lost + gained > 0 and abs(lost - gained) / math.sqrt(lost + gained) > 1.959963984540054
    assert (drop.low > 1e-9 or drop.high < -1e-9) == rejects
    assert -100 <= drop.low <= drop.value_pp <= drop.high <= 100
    assert drop.value_pp <= drop.bound_pp <= 100


@given(st.integers(1, 60), st.integers(0, 12), st.integers(0, 12))
def test_swapping_teacher_and_candidate_mirrors_the_drop(agree: int, lost: int, gained: int) -> None:
    teacher, candidate = vectors(agree + lost + gained, lost, gained)
    there, back = paired_accuracy(teacher, candidate), paired_accuracy(candidate, teacher)
    assert (there.value_pp, there.low, there.high) == pytest.approx((-back.value_pp, -back.high, -back.low))


def test_samples_on_which_both_agree_say_nothing_but_their_number() -> None:
    assert paired_accuracy(*vectors(200, 7, 3, both=0)) == paired_accuracy(*vectors(200, 7, 3, both=150))


def test_the_limits_are_where_the_score_test_turns() -> None:
    """Oracle: the likelihood maximised by brute force at the limit, instead of Tango's closed form."""
    for n, lost, gained in ((50, 3, 1), (100, 7, 2), (300, 0, 4), (40, 12, 9)):
        drop = paired_accuracy(*vectors(n, lost, gained))
        for d in (drop.low / 100, drop.high / 100):
            p = np.linspace(max(0, -d) + 1e-9, (1 - d) / 2 - 1e-9, 400_001)  # P(gained); P(lost) = p + d
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = [(lost, p + d), (gained, p), (n - lost - gained, 1 - 2 * p - d)]
                likelihood = sum(k * np.log(q) for k, q in terms if k)
            best = p[np.nanargmax(likelihood)]
            z = (lost - gained - n * d) / math.sqrt(n * (2 * best + d - d * d))
            assert abs(z) == pytest.approx(1.96, abs=2e-3)


def test_limits_by_hand() -> None:
    drop = paired_accuracy(*vectors(44, 1, 0))
    assert drop.value_pp == pytest.approx(100 / 44)
    z2 = 1.959963984540054**2  # with nothing gained the upper limit is Wilson's
    wilson = (1 + z2 / 2 + math.sqrt(z2) * math.sqrt(1 * 43 / 44 + z2 / 4)) / (44 + z2)
    assert drop.high == pytest.approx(100 * wilson, rel=1e-6)
    assert paired_accuracy([True], [False]).bound_pp == 100


def test_many_samples_with_much_churn_still_certify() -> None:
    drop = paired_accuracy(*vectors(10_000, 200, 180, both=9000))
    assert drop.certifies(1.0)
    assert drop.bound_pp == pytest.approx(0.2 + 0.33, abs=0.02)


@pytest.mark.parametrize("compare", [paired_accuracy, paired_scores])
def test_vectors_that_cannot_be_paired(compare: Callable[..., object]) -> None:
    for one, two in (([1, 0], [1]), ([], []), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="two vectors over the same samples are compared"):
            compare(one, two)


@pytest.mark.slow
def test_coverage_of_paired_scores() -> None:
    rng = np.random.default_rng(0)
    hits = bounded = 0
    for seed in range(100):
        teacher = 100 - rng.exponential(2, 100)
        drop = paired_scores(teacher, teacher - rng.normal(0.5, 1, 100), seed)
        hits += drop.low <= 0.5 <= drop.high
        bounded += drop.bound_pp >= 0.5
        assert drop.low <= drop.value_pp <= drop.bound_pp <= drop.high
    assert hits >= 0.90 * 100
    assert bounded >= 0.90 * 100


def test_paired_scores_are_repeatable_and_few_samples_certify_nothing() -> None:
    teacher = np.linspace(90, 100, 20)
    assert paired_scores(teacher, teacher - 0.1) == paired_scores(teacher, teacher - 0.1)
    assert paired_scores(teacher, teacher - 0.1).bound_pp == pytest.approx(0.1)
    assert not paired_scores(teacher, teacher - 0.1).certifies(1.0)
    long = np.linspace(90, 100, 300)
    assert paired_scores(long, long - 0.1).certifies(1.0)
    with pytest.raises(ValueError, match="1 of 20 scores are not finite"):
        paired_scores(teacher, np.where(teacher < 90.1, np.nan, teacher))


# --- the machine


X86 = """processor\t: 0
model name\t: AMD EPYC 9B45
cpu MHz\t\t: 2600.000
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx_vnni

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""


def test_processors() -> None:
    assert processor(X86) == ("AMD EPYC 9B45", ["avx2", "avx512f", "avx512_vnni", "avx_vnni"])
    assert processor(ARM) == ("implementer 0x41 part 0xd42", ["asimd", "asimdhp", "asimddp"])
    assert processor("") == (None, [])


def test_this_machine() -> None:
    facts = machine()
    assert facts["cpu"]
    assert isinstance(facts["cores"], int)
    assert facts["cores"] >= 1
    assert isinstance(facts["load_1min"], float)
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 16
