"""`finemoe advise`: what a trace shows about expert memory, eviction rules, prefetching and machines."""
