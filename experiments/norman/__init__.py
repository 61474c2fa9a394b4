"""The Norman protocol of the PerturbedVAE paper: its legacy metrics, and honest ones beside them."""
