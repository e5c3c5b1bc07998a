"""DeepSpeed-Inference (Aminabadi et al., SC '22, arXiv 2207.00032): expert-agnostic offloading, layer by layer, on demand.

A running layer fetches all of its missing experts, whether its gate selected them or not. Nothing is prefetched. As in section
6.1, an expert cache is added for fairness. Our version differs in two ways. In the baseline's favour, the cache's recency follows
activations: experts that were fetched but not activated are evicted first (if every fetch counted as a use, LRU would never hit
below full memory). To its disadvantage, experts that were not activated are fetched after the layer has computed; a fetch of the
whole layer before it would keep several links busy at once.
"""

from finemoe.policies.on_demand import OnDemand


class DeepSpeedInference(OnDemand):
    """Loads whole layers on demand; evicts by LRU."""

    loads_whole_layers = True
    is_synchronous = True
