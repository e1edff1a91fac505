"""What a third party needs to show that its tier does what a tier must: conformance suites and material for them."""

from kvstore.testing.faults import Fault, replaced
from kvstore.testing.owners import BookOwner
from kvstore.testing.records import Sample, aligned_memory, make_sample, make_spec
from kvstore.testing.tiers import PersistentTierConformance, TierConformance

__all__ = [
    "BookOwner",
    "Fault",
    "PersistentTierConformance",
    "Sample",
    "TierConformance",
    "aligned_memory",
    "make_sample",
    "make_spec",
    "replaced",
]
