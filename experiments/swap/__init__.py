"""Swaps of one part at a time: what each changes on pairs that were held out."""
