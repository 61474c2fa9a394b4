"""Cells that escaped their perturbation: what the two-component mixture changes."""
