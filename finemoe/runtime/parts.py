"""The parts of an engine that work together on an iteration."""

from dataclasses import dataclass

from finemoe.policies.base import Policy, PolicySetup
from finemoe.report import Counters
from finemoe.runtime.devices import DeviceMemories
from finemoe.runtime.matcher import Matcher
from finemoe.runtime.probe import Probe
from finemoe.runtime.session import Session
from finemoe.runtime.snapshot import HostBuffers
from finemoe.runtime.timeline import Timeline
from finemoe.runtime.unpacking import Unpacker


@dataclass(frozen=True)
class Parts:
    """The parts of one engine.

    Attributes:
        session: which thread is inside the model.
        policy: what decides.
        setup: what the policy knows about the model.
        matcher: feeds the policy.
        memories: expert memories of the devices.
        counters, timeline: record what happens.
        probe: attachment point for measurements.
        buffers: see Snapshot.
        grouped_from: as in `finemoe.offload`.
        unpacker: None if no expert is packed.
    """

    session: Session
    policy: Policy
    setup: PolicySetup
    matcher: Matcher
    memories: DeviceMemories
    counters: Counters
    timeline: Timeline
    probe: Probe
    buffers: HostBuffers | None
    grouped_from: int | None
    unpacker: Unpacker | None
