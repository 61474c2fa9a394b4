"""Numbers that the paper prints (arXiv 2605.19343), on the full screen of 5,000 genes, and what they imply."""

from __future__ import annotations

# Table 2 (doubles), Tables 4 and 13 (relative cell RMSE of singles and doubles), Tables 3, 14 and 16 (doubles)
RMSE_R2 = {
    "scFoundation": ("0.5714 ± 0.0105", "0.9844 ± 0.006"),
    "UCE": ("0.5634 ± 0.0039", "0.9857 ± 0.0006"),
    "Geneformer": ("0.6132 ± 0.0322", "0.9728 ± 0.0015"),
    "STATE": ("0.4981 ± 0.0046", "0.9475 ± 0.0021"),
    "RandomForest": ("0.4931 ± 0.0003", "0.9800 ± 0.0005"),
    "ElasticNet": ("0.4929 ± 0.0000", "0.9795 ± 0.0000"),
    "KNN": ("0.4894 ± 0.0000", "0.9843 ± 0.000"),
    "PerturbedVAE": ("0.4474 ± 0.0007", "0.9865 ± 0.0009"),
    "PCA + Additive": ("0.4907 ± 0.0002", "negative"),
    "scVI + Additive": ("0.4735 ± 0.0002", "negative"),
}
SINGLE_DOUBLE = {
    "Discrepancy-VAE": ("0.5558 ± 0.0022", "0.6082 ± 0.0045"),
    "SENA": ("0.5837 ± 0.0074", "0.8483 ± 0.0248"),
    "sVAE+": ("0.5002 ± 0.0022", "0.5664 ± 0.0012"),
    "SAMS-VAE": ("0.4123 ± 0.0029", "0.4629 ± 0.0014"),
    "PerturbedVAE, no alignment": ("0.4155 ± 0.0038", "0.4623 ± 0.0041"),
    "PerturbedVAE": ("0.3995 ± 0.0013", "0.4474 ± 0.0007"),
}
TABLE_14 = {
    "Additive": {"l2": 2.5407, "delta_pearson": 0.9076, "rmse_pb_rel": 0.0887, "rmse_cell_rel": 0.4424},
    "GEARS": {"l2": 4.6797, "delta_pearson": 0.4631, "rmse_pb_rel": 0.1514, "rmse_cell_rel": 0.5861},
    "PerturbedVAE": {"l2": 3.7238, "delta_pearson": 0.6869, "rmse_pb_rel": 0.1285, "rmse_cell_rel": 0.4494},
}

# printed by the notebook of discrepancy_vae for doubles: batches, whole conditions, whole conditions on DE genes
DISCREPANCY_VAE = {
    "rmse_cell_rel": "0.6261 ± 0.0045", "rmse_cell_rel_whole": "0.6263", "rmse_cell_rel_de": "0.5429",
    "r2_mean_legacy": "0.9664 ± 0.0014", "r2_mean_legacy_whole": "0.9785", "r2_mean_legacy_de": "0.8680",
    "mmd_legacy": "0.4291 ± 0.0060",
}  # fmt: skip


def floor_squared(rmse_cell: float, rmse_bulk: float) -> float:
    """f, the share of cell variance in mean x^2, from both relative errors of one mean predictor.

    ``rmse_cell^2 = f + rmse_bulk^2 (1 - f)``; its root is what the true mean itself would score.
    """
    return (rmse_cell**2 - rmse_bulk**2) / (1 - rmse_bulk**2)
