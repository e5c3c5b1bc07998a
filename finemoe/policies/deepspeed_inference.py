"""DeepSpeed-Inference (Aminabadi et al., SC '22, arXiv 2207.00032): expert-agnostic offloading, layer by layer, on demand.

A layer that runs fetches all of its experts that are not there, whether its gate selected them or not. As in section 6.1 an
expert cache is added for fairness, and nothing is fetched ahead. Ours differs in the baseline's favour: the cache's recency
follows activations, so that what was fetched and not activated leaves first (were every fetch a use, LRU would never hit below
full memory). It differs to its disadvantage too: what was not activated is fetched after the layer has computed, where a fetch
of the whole layer before it would keep several links busy at once.
"""

from finemoe.policies.on_demand import OnDemand


class DeepSpeedInference(OnDemand):
    """Whole layers on demand, LRU."""

    loads_whole_layers = True
    is_synchronous = True
