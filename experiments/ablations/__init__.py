"""Ablations: what each part of the default buys on pairs that were held out, beside what the paper says of its own."""
