"""Posterior predictive checks on two real screens: do new cells look like held-out ones, and which likelihood is missing?"""
