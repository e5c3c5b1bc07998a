"""A second simulator in virtual time, chunk by chunk and with sets and dictionaries; for demanded sets that fit the cache.

A link never remembers how much of a transfer is left: it moves one chunk after the other, and looks for something more urgent in
between.
"""

from tests.simulation.naive import RULES, Cache, Log

BESIDE, AT_GATE, AFTER_LAYER = range(3)


class Link:
    """One device's slots and the way to them."""

    def __init__(self, rule, num_slots, log, load_s, prefetch_s, chunk_s, must_be_ahead):
        self.must_be_ahead = must_be_ahead  # but after a layer its own other experts may still be fetched
        self.cache, self.load_s, self.chunk_s = Cache(RULES[rule], num_slots, log), load_s, chunk_s
        self.prefetch_s = prefetch_s
        self.free_at = 0.0
        self.there_at = {}  # key -> when its last chunk has arrived
        self.pending = {}  # key -> probability, in the order asked for
        self.flight, self.chunks = None, []
        self.ahead = self.demanded = 0

    def take_slot(self, key, now):
        self.cache.held_back = {other for other, time in self.there_at.items() if time > now}
        if not self.cache.make_room():
            return False
        self.there_at = {other: time for other, time in self.there_at.items() if other in self.cache.resident}
        self.cache.resident.add(key)
        self.there_at[key] = float("inf")
        return True

    def run(self, until, layer):
        """Start no chunk at `until` or later."""
        while self.free_at < until:
            if self.flight is None and not self.take_off(layer):
                self.free_at = until
                return
            self.free_at += self.chunks.pop(0)
            if not self.chunks:
                self.there_at[self.flight] = self.free_at
                self.flight = None

    def take_off(self, layer):
        while True:
            is_open = lambda key: key[0] >= layer + self.must_be_ahead and key not in self.cache.resident  # noqa: E731
            self.pending = {key: p for key, p in self.pending.items() if is_open(key)}
            if not self.pending:
                return False
            key = max(self.pending, key=lambda key: self.pending[key] / max(key[0] - layer, 1))
            del self.pending[key]
            if self.take_slot(key, self.free_at):
                break
        self.ahead += 1
        self.cache.unused.add(key)
        if key[0] != layer:
            self.cache.awaited.add(key)
        whole, rest = divmod(self.prefetch_s, self.chunk_s)
        self.flight = key
        self.chunks = [self.chunk_s] * int(whole) + ([rest] if rest > 1e-12 else [])
        return True

    def demand(self, keys, gate):
        """Missing experts now, one after the other; then what is late."""
        for key in keys:
            if key in self.cache.resident:
                continue
            assert self.take_slot(key, gate)
            self.free_at = max(self.free_at, gate) + self.load_s
            self.there_at[key] = self.free_at
            self.demanded += 1
        if self.flight in keys:
            self.free_at = max(self.free_at, gate)
            while self.chunks:
                self.free_at += self.chunks.pop(0)
            self.there_at[self.flight] = self.free_at
            self.flight = None

    def drain(self, now, layer):
        self.free_at = max(self.free_at, now)
        while self.flight is not None or self.take_off(layer):
            self.run(self.free_at + sum(self.chunks), layer)
        return self.free_at


def replay(
    events, durations, rule, owner, num_layers, num_experts, num_slots, num_devices, load_s, chunk_s, waits, wake_s, prefetch_s,
    hand_over_s=0.0, hits_first=False, resume_s=0.0,
):  # fmt: skip
    """(hits, late, on demand, ahead, wasted) of each event, and (begin, end, waited for weights) of each.

    Args:
        events: list of dicts (layer, is_start, demanded, before [answers], after [answers]); an answer is (layer, row, experts).
        durations: list of dicts (before, expert {id: s}, after, search_start, search_gate, earliest).
        owner: (layer, id) -> device.
    """
    sets = [(event["layer"], set(event["demanded"])) for event in events]
    logs = [Log(num_layers, num_experts, sets) for _ in range(num_devices)]  # each of what its device is asked for
    links = [Link(rule, num_slots, log, load_s, prefetch_s, chunk_s, waits != AFTER_LAYER) for log in logs]
    now = matcher = 0.0
    answers, found = [], []

    def hear(answer, layer, may_load):
        for target, row, wanted in answer:
            for log in logs:
                log.hear(target, row)
            for e in wanted:
                key, link = (target, e), links[owner(target, e)]
                if not may_load or target < layer + link.must_be_ahead:
                    continue
                if key not in link.cache.resident:
                    link.pending[key] = float(row[e])
                elif target > layer:
                    link.cache.awaited.add(key)

    def pass_time(until, layer):
        while answers and answers[0][0] <= until:
            time, answer = answers.pop(0)
            for link in links:
                link.run(time, layer)
            hear(answer, layer, True)
        for link in links:
            link.run(until, layer)

    def publish(answer, search_s, time, layer, must_wait):
        """When inference goes on, and how long it has waited for weights."""
        nonlocal matcher
        is_short = search_s < hand_over_s and matcher <= time
        matcher = max(time, matcher) + search_s
        answers.append((matcher, answer))
        if not must_wait and not is_short:
            return time, 0.0
        pass_time(matcher, layer)
        if not must_wait:
            return matcher, 0.0
        idle = max([matcher, *(link.drain(matcher, layer) for link in links)])
        resumed = idle + resume_s if idle > matcher else matcher
        return resumed, resumed - matcher

    for event, takes in zip(events, durations, strict=True):
        layer, before = event["layer"], sum(link.ahead for link in links)
        wasted = sum(link.cache.wasted for link in links)
        if event["is_start"]:
            now = max(now, takes["earliest"])
            pass_time(now, num_layers)
            while answers:
                hear(answers.pop(0)[1], num_layers, False)
            for link in links:
                link.pending, link.cache.awaited, link.cache.running, link.cache.layer = {}, set(), set(), -1
        begin, stalls = now, [0.0]
        if event["is_start"]:
            now, stall = publish(event["before"], takes["search_start"], now, -1, waits != BESIDE)
            stalls.append(stall)
        gate = now + takes["before"]
        pass_time(gate, layer - 1)
        keys = [(layer, e) for e in event["demanded"]]
        hits = late = loads = 0
        for number, link in enumerate(links):
            mine = [key for key in keys if owner(*key) == number]
            logs[number].events.append((layer, {e for _, e in mine}))
            link.cache.layer, link.cache.running = layer, set(mine)
            link.cache.awaited = {key for key in link.cache.awaited if key[0] != layer}
            hits += sum(key in link.cache.resident and link.there_at[key] <= gate for key in mine)
            late += sum(key in link.cache.resident and link.there_at[key] > gate for key in mine)
            link.cache.unused -= set(mine)
        for number, link in enumerate(links):
            loads -= link.demanded
            link.demand([key for key in keys if owner(*key) == number], gate)
            loads += link.demanded
        start = gate
        if waits != AFTER_LAYER:
            start, stall = publish(event["after"], takes["search_gate"], gate, layer, waits == AT_GATE)
            stalls.append(stall)
        ends, there_at = [start] * num_devices, {key: time for link in links for key, time in link.there_at.items()}
        if hits_first:
            here, coming = ([key for key in keys if (there_at[key] > gate) == is_coming] for is_coming in (False, True))
            while coming:
                here.append(min(coming, key=lambda key: (there_at[key], key)))
                coming.remove(here[-1])
            keys = here
        for key in keys:
            number = owner(*key)
            if there_at[key] > ends[number]:
                stalls.append(there_at[key] + wake_s - ends[number])
                ends[number] = there_at[key] + wake_s
            ends[number] += takes["expert"][key[1]]
        now = max(ends) + takes["after"]
        if waits == AFTER_LAYER:
            now, stall = publish(event["after"], takes["search_gate"], now, layer, True)
            stalls.append(stall)
        ahead = sum(link.ahead for link in links) - before
        found.append((hits, late, loads, ahead, sum(link.cache.wasted for link in links) - wasted, begin, now, sum(stalls)))
    return found
