"""A second replay, as plain as can be: dictionaries, sets and loops, every quantity computed anew from its definition.

It shares nothing with the package but the trace it reads, and the forecasts of finemoe-plus, which have a twin of their own.
Slow, and only for demanded sets that fit the cache.
"""

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np

from finemoe.maps.forecaster import Forecaster
from finemoe.traces import PREFILL

# --- what each system asks for: (layer, {expert: probability}, whole predicted row) --------------------------------------------


def union_of_top(rows, counts):
    """{expert: maximum over rows} over the `counts[i]` most probable experts of each row i."""
    chosen = set()
    for row, count in zip(rows, counts, strict=True):
        chosen |= set(sorted(range(len(row)), key=lambda e: (-row[e], e))[:count])
    best = np.max(rows, axis=0)
    return {e: float(best[e]) for e in sorted(chosen)}, best


def cosine(a, b):
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


class Nothing:
    whole_layers = False
    least_gain = None

    def __init__(self, trace, history, distance):
        self.trace, self.history, self.distance = trace, history, distance

    def at_start(self, request, rows):
        return []

    def at_gate(self, request, rows, layer):
        return []


class WholeLayers(Nothing):
    whole_layers = True


class NextGate(Nothing):
    """mixtral-offloading, and promoe's speculative variant at another stride."""

    stride = 1

    def at_gate(self, request, rows, layer):
        if layer + self.stride >= self.trace.num_layers:
            return []
        guesses = self.trace.lookahead(rows, self.stride)[:, layer]
        wanted, row = union_of_top(guesses, [self.trace.top_k] * len(guesses))
        return [(layer + self.stride, wanted, row)]


class Speculative(NextGate):
    @property
    def stride(self):
        return self.distance


class Maps(Nothing):
    """finemoe over a frozen store that holds all of the history."""

    def __init__(self, trace, history, distance):
        super().__init__(trace, history, distance)
        self.maps, self.embeddings = history.maps(), history.embeddings()

    def guided(self, layer, scores):
        """scores [B, C]: the best record of each row guides; the smallest set that reaches delta, at least K."""
        rows = [self.maps[int(np.argmax(row)), layer] for row in scores]
        counts = []
        for row, score in zip(rows, scores, strict=True):
            delta, total, count = min(max(1 - max(score), 0), 1), 0.0, 0
            for probability in sorted(row.astype(float), reverse=True):
                if count >= self.trace.top_k and (total >= delta or probability == 0):
                    break
                total, count = total + probability, count + 1
            counts.append(count)
        wanted, row = union_of_top(rows, counts)
        return [(layer, wanted, row)]

    def at_start(self, request, rows):
        scores = [[cosine(new, old) for old in self.embeddings] for new in self.trace.embeddings(rows)]
        return [answer for layer in range(self.distance) for answer in self.guided(layer, scores)]

    def at_gate(self, request, rows, layer):
        if layer + self.distance >= self.trace.num_layers:
            return []
        prefixes = self.trace.maps(rows)[:, : layer + 1]
        scores = [[cosine(new, old[: layer + 1]) for old in self.maps] for new in prefixes]
        return self.guided(layer + self.distance, scores)


class Matrices(Nothing):
    """moe-infinity over the matrices of all history requests (fewer than its collection holds)."""

    def __init__(self, trace, history, distance):
        super().__init__(trace, history, distance)
        self.past = [
            self.counts(history, range(*history.rows_of(r).indices(history.num_rows))) for r in range(history.num_requests)
        ]

    def counts(self, trace, rows):
        found = np.zeros((trace.num_layers, trace.num_experts))
        for row in rows:
            for layer in range(trace.num_layers):
                for expert in trace.expert_ids[row, layer]:
                    found[layer, expert] += 1
        return found

    def most(self, layer, counts, num_rows):
        ranked = sorted(range(len(counts)), key=lambda e: (-counts[e], e))[: self.trace.top_k * num_rows]
        row = (counts / counts.sum()).astype(np.float32)
        return [(layer, {e: float(row[e]) for e in sorted(ranked) if counts[e] > 0}, row)]

    def at_start(self, request, rows):
        popular = sum(self.past)
        return [answer for layer in range(self.distance) for answer in self.most(layer, popular[layer], len(rows))]

    def at_gate(self, request, rows, layer):
        if layer + self.distance >= self.trace.num_layers:
            return []
        running = self.counts(self.trace, range(int(self.trace.offsets[request]), rows[0]))
        running[: layer + 1] += self.counts(self.trace, rows)[: layer + 1]
        nearest = max(self.past, key=lambda matrix: cosine(matrix, running))
        return self.most(layer + self.distance, nearest[layer + self.distance], len(rows))


class Ridge(Nothing):
    """promoe: one ridge regression a layer, solved as ordinary least squares on rows extended by the penalty."""

    recent, penalty = 8, 1e-3

    def __init__(self, trace, history, distance):
        super().__init__(trace, history, distance)
        self.weights = {}
        maps = history.maps().astype(float)
        for target in range(distance, trace.num_layers):
            activated = np.zeros(maps.shape[:1] + maps.shape[2:])
            for row, experts in enumerate(history.expert_ids[:, target]):
                activated[row, experts] = 1
            features = np.stack([self.features(one, target) for one in maps])
            scale = self.penalty * (features**2).sum() / features.shape[1]
            extended = np.concatenate([features, np.sqrt(scale) * np.eye(features.shape[1])])
            goals = np.concatenate([activated, np.zeros((features.shape[1], trace.num_experts))])
            self.weights[target] = np.linalg.lstsq(extended, goals, rcond=None)[0]

    def features(self, one, target):
        last = target - self.distance
        return np.concatenate([*(one[layer] for layer in range(max(0, last - self.recent + 1), last + 1)), [1.0]])

    def at_gate(self, request, rows, layer):
        target = layer + self.distance
        if target >= self.trace.num_layers:
            return []
        scores = np.stack([self.features(one, target) @ self.weights[target] for one in self.trace.maps(rows).astype(float)])
        scores = np.maximum(scores, 0) + 1e-9
        rows_ = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
        wanted, row = union_of_top(rows_, [self.trace.top_k] * len(rows_))
        return [(target, wanted, row)]


class Future(Nothing):
    """The oracle."""

    def will(self, rows, layer):
        experts = sorted({int(e) for row in rows for e in self.trace.expert_ids[row, layer]})
        row = np.zeros(self.trace.num_experts, dtype=np.float32)
        row[experts] = 1 / len(experts)
        return [(layer, {e: float(row[e]) for e in experts}, row)]

    def at_start(self, request, rows):
        return [answer for layer in range(self.distance) for answer in self.will(rows, layer)]

    def at_gate(self, request, rows, layer):
        target = layer + self.distance
        return self.will(rows, target) if target < self.trace.num_layers else []


class Foretold(Nothing):
    """finemoe-plus: what its forecaster says (tests/maps/test_forecaster.py holds that against plain NumPy)."""

    least_gain = 0.25

    def __init__(self, trace, history, distance):
        super().__init__(trace, history, distance)
        self.forecaster, self.request = Forecaster(trace.num_layers, trace.num_experts, trace.top_k), None
        self.forecaster.learn_trace(history)
        self.forecaster.is_frozen = True

    def answer(self, layer, row, is_to_be_loaded):
        wanted = {e: float(p) for e, p in enumerate(row) if p >= self.least_gain}
        return layer % self.trace.num_layers, wanted if is_to_be_loaded else {}, row

    def at_start(self, request, rows):
        if request != self.request:
            self.forecaster.start_request()
        self.request = request
        forecast = self.forecaster.start(len(rows), self.trace.phase[rows[0]] == PREFILL)
        return [self.answer(layer, row, True) for layer, row in enumerate(forecast)]

    def at_gate(self, request, rows, layer):
        maps, experts = self.trace.maps(rows)[:, layer], self.trace.expert_ids[rows, layer].astype(np.int64)
        return [
            self.answer(layer + ahead, row, ahead <= 8 and layer + ahead < self.trace.num_layers)
            for ahead, row in zip((1, 2, 4), self.forecaster.hear(layer, maps, experts), strict=True)
        ]


SYSTEMS = {
    "on-demand": (Nothing, "lru"),
    "deepspeed-inference": (WholeLayers, "lru"),
    "mixtral-offloading": (NextGate, "lru"),
    "promoe": (Ridge, "lru"),
    "promoe speculative": (Speculative, "lru"),
    "moe-infinity": (Matrices, "lfu"),
    "finemoe": (Maps, "finemoe"),
    "finemoe-plus": (Foretold, "next-use"),
    "oracle": (Future, "belady"),
}

# --- what each rule keeps: how much an expert (layer, id) is worth, from the whole log of events -------------------------------


class Log:
    """Every demand so far: events as (layer, set of experts), and every event there will be."""

    def __init__(self, num_layers, num_experts, future):
        self.num_layers, self.num_experts, self.future = num_layers, num_experts, future
        self.events = []
        self.expected = defaultdict(lambda: np.float32(1 / num_experts))
        self.foretold = {}  # layer: how often it had run when it was predicted last
        self.forecast = Forecast(num_layers, num_experts)  # of next-use

    def hear(self, layer, row):
        self.expected.update({(layer, expert): row[expert] for expert in range(self.num_experts)})
        self.foretold[layer] = self.turns((layer, 0))[1]

    def times(self, key):
        return [time for time, (layer, experts) in enumerate(self.events, 1) if layer == key[0] and key[1] in experts]

    def turns(self, key):
        """Demands of an expert, counted in turns of its layer."""
        own = [experts for layer, experts in self.events if layer == key[0]]
        return [turn for turn, experts in enumerate(own, 1) if key[1] in experts], len(own)

    def frequency(self, key):
        return 1 + len(self.times(key))

    def until(self, key, layer):
        return (key[0] - layer - 1) % self.num_layers


def lru(log, key):
    return max(log.times(key), default=0)


def lfu(log, key):
    return log.frequency(key)


def lfu_aged(log, key):
    demands, now = log.turns(key)
    return sum(0.5 ** ((now - turn) / 32) for turn in demands)


def lfru(log, key):
    return log.frequency(key) / (len(log.events) + 1 - lru(log, key))


def least_stale(log, key):
    layers = [layer for layer, _ in log.events]
    start = max((i for i in range(1, len(layers)) if layers[i] <= layers[i - 1]), default=0)
    is_fresh = any(time - 1 >= start for time in log.times(key))
    return is_fresh * log.num_layers + log.num_layers - 1 - log.until(key, layers[-1] if layers else -1)


def least_stale_interval(log, key):
    demands, now = log.turns(key)
    interval = float(log.num_experts)
    for earlier, later in pairwise(demands):
        interval = 0.7 * interval + 0.3 * (later - earlier)
    return now - ((demands[-1] if demands else now) + interval)


class Forecast:
    """What next-use learns from the events, of each expert's coming turn ("coming") and of the turns after it ("later")."""

    def __init__(self, num_layers, num_experts):
        self.num_layers, self.num_experts, self.num_seen = num_layers, num_experts, 0
        self.share = defaultdict(lambda: 0.1)
        self.said = defaultdict(lambda: 0.1)  # (model, layer, expert)
        self.weights = defaultdict(float)  # (model, layer, expert, layers before it, expert there)
        self.inputs = defaultdict(list)  # (model, layer): what was known when it was forecast, with what each counts
        self.sets = defaultdict(set)
        tables = min(16, max(512 // num_experts, 2))
        self.reach = {"later": min(-(-tables // 4), num_layers), "coming": min(tables - -(-tables // 4), num_layers)}

    def catch_up(self, events):
        for layer, experts in events[self.num_seen :]:
            self.see(layer, experts)
        self.num_seen = len(events)

    def see(self, layer, experts):
        self.sets[layer] = experts if len(experts) <= self.num_experts / 2 else set()
        before = {(model, e): self.said[model, layer, e] for model in self.reach for e in range(self.num_experts)}
        inputs = {model: self.inputs[model, layer] for model in self.reach}
        for e in range(self.num_experts):
            self.learn("coming", layer, e, inputs["coming"], before["coming", e] - (e in experts))
            self.share[layer, e] = 0.5 ** (1 / 15) * self.share[layer, e] + (1 - 0.5 ** (1 / 15)) * (e in experts)
        for model, reach in self.reach.items():
            sources = [(back, self.sets[(layer - back) % self.num_layers]) for back in range(reach)]
            self.inputs[model, layer] = [(back, e, len(known) ** -0.5) for back, known in sources for e in known]
        for e in range(self.num_experts):
            coming, later = self.forecast("coming", layer, e), self.forecast("later", layer, e)
            if e not in experts:
                self.learn("later", layer, e, inputs["later"], before["later", e] - (coming + (1 - coming) * 0.6 * later))

    def learn(self, model, layer, expert, inputs, error):
        for back, source, count in inputs:
            self.weights[model, layer, expert, back, source] -= 0.1 * count * error

    def forecast(self, model, layer, expert):
        share = self.share[layer, expert]
        score = 0.5 * math.log((share + 0.005) / (1 - share + 0.005))
        score += sum(self.weights[model, layer, expert, back, e] * count for back, e, count in self.inputs[model, layer])
        self.said[model, layer, expert] = 1 / (1 + math.exp(-score))
        return self.said[model, layer, expert]


def next_use(log, key):
    log.forecast.catch_up(log.events)
    is_foretold = log.foretold.get(key[0]) == log.turns(key)[1]
    coming = float(log.expected[key]) if is_foretold else log.forecast.said["coming", *key]
    until = log.until(key, log.events[-1][0] if log.events else -1) + 1
    return (coming + (1 - coming) * 0.6 * log.forecast.said["later", *key]) * (1 - 0.4 * until / log.num_layers)


def finemoe(log, key):
    return float(log.expected[key]) * log.frequency(key)


def belady(log, key):
    later = [
        time
        for time in range(len(log.events), len(log.future))
        if log.future[time][0] == key[0] and key[1] in log.future[time][1]
    ]
    return -(later[0] if later else float("inf"))


RULES = {
    "lru": lru,
    "lfu": lfu,
    "lfu-aged": lfu_aged,
    "lfru": lfru,
    "least-stale": least_stale,
    "least-stale-interval": least_stale_interval,
    "next-use": next_use,
    "finemoe": finemoe,
    "belady": belady,
}


# --- the replay ----------------------------------------------------------------------------------------------------------------


class Cache:
    def __init__(self, rule, num_slots, log):
        self.rule, self.num_slots, self.log = rule, num_slots, log
        self.resident, self.unused, self.awaited, self.running = set(), set(), set(), set()
        self.held_back = set()  # on their way, and so no victims
        self.layer = -1
        self.wasted = 0

    def worth(self, key):
        """Rounded, since a sum's last digit is not the definition's."""
        return round(self.rule(self.log, key), 9)

    def victim(self):
        """Who must go for another; None where nobody may."""
        movable = self.resident - self.running - self.held_back
        candidates = (movable - self.awaited) or movable
        order = lambda key: (self.worth(key), self.log.frequency(key), -self.log.until(key, self.layer), key)  # noqa: E731
        return min(candidates, key=order, default=None)

    def gain(self, key):
        """What an absent expert is worth more than who must go for it."""
        has_room = len(self.resident) < self.num_slots
        victim = None if has_room else self.victim()
        return self.worth(key) - (0 if victim is None else self.worth(victim))

    def make_room(self):
        if len(self.resident) < self.num_slots:
            return True
        victim = self.victim()
        if victim is None:
            return False
        self.resident.discard(victim)
        self.wasted += victim in self.unused
        self.unused.discard(victim)
        self.awaited.discard(victim)
        return True


def replay(trace, system, rule, num_slots, history=None, distance=2):
    """Counts of a replay, in experts: hits, misses, ahead (prefetched), wasted, useful, unused (still resident)."""
    policy_class, own_rule = SYSTEMS[system]
    policy = policy_class(trace, history, distance)
    iterations = [(request, list(range(rows.start, rows.stop))) for request, _, rows in trace.iterations()]
    sets = [
        (layer, {int(e) for row in rows for e in trace.expert_ids[row, layer]})
        for _, rows in iterations
        for layer in range(trace.num_layers)
    ]
    log = Log(trace.num_layers, trace.num_experts, sets)
    cache = Cache(RULES[rule or own_rule], num_slots, log)
    counts = dict.fromkeys(("hits", "misses", "ahead", "useful"), 0)

    def load_ahead(answers):
        for layer, _, row in answers:
            log.hear(layer, row)
        asked = [(p / max(layer - cache.layer, 1), (layer, e)) for layer, wanted, _ in answers for e, p in wanted.items()]
        absent = [(p, key) for p, key in asked if key not in cache.resident]
        cache.awaited |= {key for _, key in asked if key in cache.resident and key[0] > cache.layer}
        for _, key in sorted(absent, key=lambda pair: -pair[0]):
            if (policy.least_gain is None or cache.gain(key) > policy.least_gain) and cache.make_room():
                cache.resident.add(key)
                cache.unused.add(key)
                counts["ahead"] += 1
                if key[0] != cache.layer:
                    cache.awaited.add(key)

    for request, rows in iterations:
        cache.layer, cache.running, cache.awaited = -1, set(), set()
        load_ahead(policy.at_start(request, rows))
        for layer in range(trace.num_layers):
            demanded = {(layer, int(e)) for row in rows for e in trace.expert_ids[row, layer]}
            assert len(demanded) <= num_slots
            cache.layer, cache.running = layer, set(demanded)
            cache.awaited = {key for key in cache.awaited if key[0] != layer}
            counts["hits"] += len(demanded & cache.resident)
            counts["useful"] += len(demanded & cache.unused)
            cache.unused -= demanded
            log.events.append((layer, {expert for _, expert in demanded}))
            for key in sorted(demanded - cache.resident):
                counts["misses"] += 1
                assert cache.make_room()
                cache.resident.add(key)
            load_ahead(policy.at_gate(request, rows, layer))
            if policy.whole_layers:
                uniform = np.full(trace.num_experts, 1 / trace.num_experts, dtype=np.float32)
                load_ahead([(layer, dict(enumerate(uniform.tolist())), uniform)])
            assert len(cache.resident) <= num_slots
    return {**counts, "wasted": cache.wasted, "unused": len(cache.unused)}
