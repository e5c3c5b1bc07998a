"""What an engine is made of, for those of its parts that work together on an iteration."""

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
    """One engine's.

    Attributes:
        session: who is inside. policy, setup: what decides, and what it was told. matcher: feeds it.
        memories: of the devices. counters, timeline: what is noted. probe: what is measured.
        buffers: see Snapshot. grouped_from: as in `finemoe.offload`. unpacker: None where no expert is packed.
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
