"""What a trace says about memory, rules, prefetching and machines: `finemoe advise`."""
